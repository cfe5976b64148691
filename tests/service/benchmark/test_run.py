"""The parts of a benchmark, and how they are put together."""

from typing import Any

import pytest

from model.engines.base import EngineInfo
from service.benchmark import load, run
from service.benchmark.results import LoadFigures, ServerFigures
from service.benchmark.run import PARTS, BenchmarkPlan, measure_under_load
from service.benchmark.samples import generate_sample
from service.benchmark.stages import measure_answers, measure_decoding
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
    """A server answers 12 images per second from 4 connections on: each of 256 would wait 21 s."""
    loads: list[Any] = []

    def send_closed_load(server, route, connections, seconds):
        loads.append((connections, seconds))
        return figures(route.name, connections, min(12, 3 * connections))

    def send_open_load(server, route, rate_per_s, seconds):
        loads.append((rate_per_s, seconds))
        return figures(route.name, 99, rate_per_s, rate_per_s)

    monkeypatch.setattr(load, "send_closed_load", send_closed_load)
    monkeypatch.setattr(load, "send_open_load", send_open_load)
    route = load.Route("/embed", "/embed", "image/jpeg", (b"",))
    served = measure_under_load(None, [route], (1, 4, 64, 256), (0.5, 0.8), 3, lambda step: None, "")  # type: ignore[arg-type]
    assert loads == [(1, 4), (4, 4), (64, 16), (pytest.approx(6), 8), (pytest.approx(9.6), 8)]
    assert list(served.left_out) == ["/embed, 256 connections"]
    assert "would wait 21 s" in served.left_out["/embed, 256 connections"]
    best = served.best("/embed")
    assert best is not None and (best.connections, best.images_per_s) == (4, 12)


def test_the_tail_is_told_in_times_of_a_lone_request() -> None:
    lone = figures("/embed", 1, 25).model_copy(update={"p50_ms": 40, "p95_ms": 44, "p99_ms": 60})
    random = figures("/embed", 200, 24, 24).model_copy(update={"p50_ms": 50, "p95_ms": 80, "p99_ms": 110})
    others = [figures("/embed", 16, 48), figures("/reconstruct", 200, 24, 24).model_copy(update={"p95_ms": 1})]
    [tail] = ServerFigures(figures=(lone, random, *others)).tails()
    assert (tail.route, tail.asked_per_s, tail.lone_p50_ms, tail.ratios) == ("/embed", 24, 40, (1.25, 2.0, 2.75))


def test_how_long_it_takes_is_known_beforehand() -> None:
    """8 figures of the engine at half a second each; one route, two servers, runs of 4 s (closed) and 8 s (open)."""
    engine = FakeEngine(preferred_batch=2, lanes=1)
    assert BenchmarkPlan(frozenset({"engine"}), 0.5, 3).duration(engine, 5, 1) == (4, 4)
    assert BenchmarkPlan(frozenset({"decode", "answers"}), 0.5, 3).duration(engine, 5, 1) == (5.5, 5.5)
    shortest, longest = BenchmarkPlan(frozenset(PARTS), 0.5, 3, (1, 4)).duration(engine, 5, 1)
    assert shortest == 4 + 5.5 + (3 + 2) * 4 + 2 * 8
    assert longest == 4 + 5.5 + (3 + 2) * load.MAX_SECONDS + 2 * 8 + 2 * run.START_S


def test_stages_alone(info: EngineInfo) -> None:
    samples = [generate_sample("JPEG", 64, 48, 2), generate_sample("WEBP", 64, 48, 1)]
    decode = measure_decoding(info, samples, 10_000, 2, 0.02)
    answers = measure_answers(info, 1, 0.01)
    assert [cost.what for cost in decode] == ["JPEG 64 x 48", "WEBP 64 x 48"]
    assert decode[0].kilobytes == pytest.approx(sum(map(len, samples[0].files)) / 2000)
    sizes = {cost.what: cost.kilobytes for cost in answers}
    assert len(sizes) == run.ANSWER_KINDS
    assert sizes["npy, a vector"] == pytest.approx((128 + 192 * 4) / 1000), "NumPy's header, and float32"
    assert sizes["PNG, panel"] > sizes["PNG, composite"] > 10
    for cost in [*decode, *answers]:
        assert cost.images >= cost.threads and cost.ms > 0 and cost.core_ms > 0
        assert cost.cores == pytest.approx(cost.core_ms * cost.images_per_s / 1000)


def test_an_encoder_writes_no_pictures(info: EngineInfo) -> None:
    config = info.config.model_copy(update={"decoder_depth": 0})
    names = [cost.what for cost in measure_answers(info.model_copy(update={"config": config}), 1, 0.001)]
    assert names and not any("PNG" in name for name in names)
