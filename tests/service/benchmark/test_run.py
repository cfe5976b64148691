"""The parts, and how they are put together."""

from typing import Any

import pytest

from model.engines.base import EngineInfo
from service.benchmark import load, run
from service.benchmark.results import LoadFigures
from service.benchmark.run import PARTS, Plan, under_load
from service.benchmark.samples import made
from service.benchmark.stages import answering, decoding
from tests.support.engines import FakeEngine


def figures(route: str, connections: int, images_per_s: float, asked_per_s: float | None = None) -> LoadFigures:
    return LoadFigures(
        route=route,
        arrivals="closed" if asked_per_s is None else "open",
        connections=connections,
        asked_per_s=asked_per_s,
        images_per_s=images_per_s,
        p50_ms=1,
        p99_ms=1,
        answered=1,
        failed=0,
        window_s=1,
        core_ms=1,
        server_cores=1,
        load_core_ms=1,
    )


def test_loads_rise_and_those_that_would_not_settle_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does 12 images a second from 4 connections on: 256 of them would wait 21 s."""
    asked: list[Any] = []

    def closed(server, route, connections, seconds):
        asked.append((connections, seconds))
        return figures(route.name, connections, min(12, 3 * connections))

    def opened(server, route, per_s, seconds):
        asked.append((per_s, seconds))
        return figures(route.name, 99, per_s, per_s)

    monkeypatch.setattr(load, "closed", closed)
    monkeypatch.setattr(load, "opened", opened)
    route = load.Route("/embed", "/embed", "image/jpeg", (b"",))
    served = under_load(None, [route], (1, 4, 64, 256), (0.5, 0.8), 3, lambda said: None, "")  # type: ignore[arg-type]
    assert asked == [(1, 4), (4, 4), (64, 16), (pytest.approx(6), 8), (pytest.approx(9.6), 8)]
    assert list(served.left_out) == ["/embed, 256 connections"]
    assert "would wait 21 s" in served.left_out["/embed, 256 connections"]
    best = served.best("/embed")
    assert best is not None and (best.connections, best.images_per_s) == (4, 12)


def test_how_long_it_takes_is_known_beforehand() -> None:
    """12 figures of an engine of half a second; one route of two servers, whose runs are 4 s, at random 8 s."""
    engine = FakeEngine(preferred_batch=2, lanes=1)
    assert Plan(frozenset({"engine"}), 0.5, 3).duration(engine, 5, 1) == (4, 4)
    assert Plan(frozenset({"decode", "answers"}), 0.5, 3).duration(engine, 5, 1) == (5.5, 5.5)
    least, most = Plan(frozenset(PARTS), 0.5, 3, (1, 4)).duration(engine, 5, 1)
    assert least == 4 + 5.5 + (3 + 2) * 4 + 2 * 8
    assert most == 4 + 5.5 + (3 + 2) * load.MOST_SECONDS + 2 * 8 + 2 * run.START_S


def test_stages_by_themselves(info: EngineInfo) -> None:
    samples = [made("JPEG", 64, 48, 2), made("WEBP", 64, 48, 1)]
    decode = decoding(info, samples, 10_000, 2, 0.02)
    answers = answering(info, 1, 0.01)
    assert [one.what for one in decode] == ["JPEG 64 x 48", "WEBP 64 x 48"]
    assert decode[0].kilobytes == pytest.approx(sum(map(len, samples[0].files)) / 2000)
    sizes = {one.what: one.kilobytes for one in answers}
    assert len(sizes) == run.ENCODERS
    assert sizes["npy, a vector"] == pytest.approx((128 + 192 * 4) / 1000), "NumPy's header, and float32"
    assert sizes["PNG, panel"] > sizes["PNG, composite"] > 10
    for one in [*decode, *answers]:
        assert one.images >= one.threads and one.ms > 0 and one.core_ms > 0
        assert one.cores == pytest.approx(one.core_ms * one.images_per_s / 1000)


def test_an_encoder_writes_no_pictures(info: EngineInfo) -> None:
    config = info.config.model_copy(update={"decoder_depth": 0})
    names = [one.what for one in answering(info.model_copy(update={"config": config}), 1, 0.001)]
    assert names and not any("PNG" in name for name in names)
