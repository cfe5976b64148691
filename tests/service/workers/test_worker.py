"""What a worker is told in the beginning is what the device process knows."""

import numpy as np
import orjson
import pytest

from model.checkpoints.heads import Head, Heads, Whitening
from model.checkpoints.native import HeadConfig
from service.settings import Settings
from service.workers.shared_counters import Column, SharedCounters
from service.workers.worker import budgets_of, images_of, packed_engine, unpacked_engine
from tests.support.engines import fake_info


@pytest.mark.parametrize(
    "settings",
    [
        Settings(http_workers=2),
        Settings(http_workers=1, api_keys="one,two", preprocess='{"resize": "squash"}', weights="hf:a/b"),
        Settings(http_workers=3, max_inflight_mb=40.5, engine_cache="/tmp/ä", parity_cosine=0.5, log_format="json"),
    ],
)
def test_settings(settings: Settings) -> None:
    assert Settings(**orjson.loads(settings.model_dump_json())) == settings


def test_an_engine_with_extras() -> None:
    draw = np.random.default_rng(0)
    facts = HeadConfig(pool="cls", classes=("ä", "b"))
    head = Head(facts, draw.standard_normal((2, 8), np.float32), draw.standard_normal(2, np.float32))
    whitening = Whitening(draw.standard_normal(8, np.float32), draw.standard_normal((8, 3), np.float32))
    info = fake_info(preferred_batch=7).model_copy(update={"head": facts})
    found, heads, slots = unpacked_engine(packed_engine(info, Heads(head, {"mean": whitening}), 9))
    assert (found, slots) == (info, 9)
    assert heads.head is not None and heads.head.config == facts
    assert (heads.head.weight == head.weight).all() and (heads.head.bias == head.bias).all()
    assert set(heads.whitening) == {"mean"}
    assert (heads.whitening["mean"].centre == whitening.centre).all()
    assert (heads.whitening["mean"].matrix == whitening.matrix).all()


def test_an_engine_without_extras() -> None:
    info, heads, slots = unpacked_engine(packed_engine(fake_info(), Heads(), 1))
    assert (info, slots) == (fake_info(), 1)
    assert heads.head is None and not heads.whitening


def test_bounds_are_of_all_workers_together() -> None:
    settings, ledger = (
        Settings(http_workers=2, max_inflight_mb=1, max_body_mb=1, queue_images=4),
        SharedCounters.create(2),
    )
    one, other = (budgets_of(settings, ledger, row) for row in range(2))
    assert one.bodies.take(600_000) and not other.bodies.take(400_001) and other.bodies.take(400_000)
    assert one.requests.take(1) and other.requests.take(1) and one.requests.used == 2
    mine, its = (images_of(settings, ledger, row) for row in range(2))
    assert mine.take(3) and not its.take(2)
    ledger.add(0, Column.LEFT, 1)
    assert its.take(2) and mine.used == 4
    ledger.close()
