"""A message is the same on the other side."""

import numpy as np
import orjson
import pytest

from model.checkpoints.heads import Head, Heads, Whitening
from model.checkpoints.memory_bank import MemoryBank
from model.checkpoints.native import HeadConfig
from service.errors import InferenceFailed, QueueFull, ServiceError
from service.inference.searcher import Neighbour, Query
from service.parameters import EmbedParameters, SearchParameters
from service.settings import Settings
from service.workers.messages import (
    pack_engine,
    pack_error,
    pack_neighbours,
    pack_query,
    pack_state,
    unpack_engine,
    unpack_error,
    unpack_neighbours,
    unpack_query,
    unpack_state,
)
from tests.support.engines import fake_info


@pytest.mark.parametrize("error_class", [ServiceError, *ServiceError.__subclasses__()])
def test_an_error_keeps_its_class(error_class: type[ServiceError]) -> None:
    error = error_class("words: ä", limit=4)
    unpacked = unpack_error(memoryview(pack_error(error)))
    assert type(unpacked) is error_class
    assert (unpacked.body(), unpacked.status, unpacked.headers) == (error.body(), error.status, error.headers)


def test_an_error_keeps_its_details() -> None:
    assert unpack_error(pack_error(InferenceFailed("failed", image=3))).details == {"image": 3}
    assert unpack_error(pack_error(QueueFull("full", limit=1))).retry_after_s == 1


def test_a_state_keeps_its_reason() -> None:
    assert unpack_state(memoryview(pack_state("lost", "the GPU has gone: ä"))) == ("lost", "the GPU has gone: ä")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(http_workers=2),
        Settings(http_workers=1, api_keys="one,two", preprocess='{"resize": "squash"}', weights="hf:a/b"),
        Settings(http_workers=3, max_inflight_mb=40.5, engine_cache="/tmp/ä", parity_cosine=0.5, log_format="json"),
    ],
)
def test_settings_are_the_same(settings: Settings) -> None:
    assert Settings(**orjson.loads(settings.model_dump_json())) == settings


def test_an_engine_keeps_its_heads() -> None:
    draw = np.random.default_rng(0)
    config = HeadConfig(pool="cls", classes=("ä", "b"))
    head = Head(config, draw.standard_normal((2, 8), np.float32), draw.standard_normal(2, np.float32))
    whitening = Whitening(draw.standard_normal(8, np.float32), draw.standard_normal((8, 3), np.float32))
    scores = np.array([1, 2, 4], np.float32)
    bank = MemoryBank(draw.standard_normal((5, 8), np.float32), scores, 32)
    info = fake_info(preferred_batch=7).model_copy(update={"head": config, "memory_bank": bank.info})
    packed = pack_engine(info, Heads(head, {"mean": whitening}, bank), 9)
    unpacked, heads, slot_count, embedding = unpack_engine(packed)
    assert (unpacked, slot_count, embedding) == (info, 9, None)
    assert heads.head is not None and heads.head.config == config
    assert (heads.head.weight == head.weight).all() and (heads.head.bias == head.bias).all()
    assert set(heads.whitening) == {"mean"}
    assert (heads.whitening["mean"].centre == whitening.centre).all()
    assert (heads.whitening["mean"].matrix == whitening.matrix).all()
    assert heads.memory_bank is not None and heads.memory_bank.image_size == 32
    assert (heads.memory_bank.tokens == bank.tokens).all() and (heads.memory_bank.scores == scores).all()


def test_an_engine_without_heads() -> None:
    parameters = EmbedParameters(whiten=True, keep=0.5, seed=2**63)
    info, heads, slot_count, embedding = unpack_engine(pack_engine(fake_info(), Heads(), 1, parameters))
    assert (info, slot_count, embedding) == (fake_info(), 1, parameters)
    assert heads.head is None and not heads.whitening and heads.memory_bank is None


def test_a_query_keeps_its_vectors_and_parameters() -> None:
    vectors = np.random.default_rng(0).standard_normal((3, 7), np.float32)
    for parameters in (SearchParameters(), SearchParameters(k=99, min_similarity=-0.25, thumbnails=True)):
        unpacked = unpack_query(pack_query(Query(vectors[:, ::-1], parameters, 123.456)))
        assert (unpacked.vectors == vectors[:, ::-1]).all() and unpacked.vectors.dtype == np.float32
        assert (unpacked.parameters, unpacked.deadline) == (parameters, 123.456)


def test_neighbours_keep_their_pictures() -> None:
    found = [[Neighbour("/ä/b.jpg", "b.jpg", 0.123456789), Neighbour("c", "c", -1.0, b"\xff\xd8\0")], []]
    assert unpack_neighbours(pack_neighbours(found)) == found
