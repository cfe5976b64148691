"""The limit, against numbers computed by hand."""

import pytest

from model.benchmark.timing import Figures
from service.benchmark.limit import full_batches, limit_of, limits_of
from service.benchmark.results import LoadFigures, ServerFigures, StageCost


def stage_cost(stage: str, what: str, core_ms: float) -> StageCost:
    return StageCost(
        stage=stage, what=what, kilobytes=1, threads=2, ms=1, core_ms=core_ms, images_per_s=1, cores=1, images=1
    )


def engine_figures(
    operation: str, visible: int, batch: int, lanes: int, core_ms: float, images_per_s: float = 60
) -> Figures:
    return Figures(
        engine="fake",
        operation=operation,  # type: ignore[arg-type]
        visible=visible,
        batch=batch,
        lanes=lanes,
        images_per_s=images_per_s,
        p50_ms=1,
        p99_ms=1,
        core_ms=core_ms,
        batches=1,
    )


def load_figures(
    route: str, images_per_s: float, core_ms: float | None, load_core_ms: float = 1, **more
) -> LoadFigures:
    fields = {"route": route, "arrivals": "closed", "connections": 16, "p50_ms": 1, "p99_ms": 1, "answered": 1}
    fields |= {"failed": 0, "window_s": 1, "server_cores": 1, **more}
    return LoadFigures(images_per_s=images_per_s, core_ms=core_ms, load_core_ms=load_core_ms, **fields)


DECODE, ANSWER = stage_cost("decode", "JPEG", 4), stage_cost("answer", "PNG, composite", 5)


def test_cores_over_the_core_seconds_of_an_image() -> None:
    """Front 12 = web 3 + decode 4 + answer 5, engine 28: 40 core-ms, so 4 cores do 100 a second; 1 more, and 97.56."""
    limit = limit_of(
        "/reconstruct",
        DECODE,
        ANSWER,
        load_figures("x", 150, 12),
        engine_figures("embed", 1, 1, 1, 28),
        load_figures("x", 80, 44),
        4,
    )
    assert limit is not None
    assert {share.stage: (share.core_ms, share.share) for share in limit.shares} == {
        "web and batching": (pytest.approx(3), pytest.approx(0.075)),
        "decode": (4, pytest.approx(0.1)),
        "engine": (28, pytest.approx(0.7)),
        "answer": (5, pytest.approx(0.125)),
    }
    assert (limit.core_ms, limit.images_per_s, limit.ratio) == (
        pytest.approx(40),
        pytest.approx(100),
        pytest.approx(0.8),
    )
    assert limit.beside_load_images_per_s == pytest.approx(4000 / 41)
    assert limit.ratio_beside_load == pytest.approx(80 * 41 / 4000)
    assert limit.measured_cores == pytest.approx(3.52), "80 a second of 44 ms"
    assert limit.front_images_per_s == 150


@pytest.mark.parametrize(("engine_alone", "limit"), [(90, 90), (500, 100)])
def test_an_accelerator_is_a_limit_of_its_own(engine_alone: float, limit: float) -> None:
    figures = engine_figures("embed", 1, 1, 1, 28, engine_alone)
    result = limit_of(
        "/embed", DECODE, ANSWER, load_figures("x", 1, 12), figures, load_figures("x", 80, 44), 4, on_accelerator=True
    )
    assert result is not None and result.images_per_s == pytest.approx(limit)


def test_where_processes_tell_nothing_there_is_no_limit() -> None:
    assert (
        limit_of(
            "x",
            DECODE,
            ANSWER,
            load_figures("x", 1, None),
            engine_figures("embed", 1, 1, 1, 1),
            load_figures("x", 1, 1),
            2,
        )
        is None
    )


def test_what_a_route_does_by_itself_is_what_counts() -> None:
    """/embed whole images, /reconstruct a quarter; the largest batch on all lanes; the load that was fastest."""
    measured = [
        engine_figures(
            operation, visible, batch, lanes, 1000 * (operation == "embed") + visible + batch / 10 + lanes / 100
        )
        for operation in ("embed", "reconstruct")
        for visible in (196, 49)
        for batch in (1, 4)
        for lanes in (1, 2)
    ]
    assert [full_batches(measured, operation) for operation in ("embed", "reconstruct")] == [measured[3], measured[15]]
    stages = [stage_cost("decode", "another", 99), DECODE, ANSWER, stage_cost("answer", "JSON, a vector", 0.5)]
    routes = ("/embed", "/reconstruct")
    front = ServerFigures(figures=tuple(load_figures(route, rate, 10) for route in routes for rate in (50, 70)))
    loads = [load_figures(route, rate, core_ms) for route in routes for rate, core_ms in ((20, 7), (30, 8), (25, 9))]
    open_load = load_figures("/embed", 99, 1, arrivals="open", asked_per_s=99)
    embed, reconstruct = limits_of(measured, stages, front, ServerFigures(figures=(*loads, open_load)), "JPEG", 2)
    for limit, route, figure, answer in (
        (embed, *routes[:1], measured[3], 0.5),
        (reconstruct, routes[1], measured[15], 5),
    ):
        assert (limit.route, limit.measured_images_per_s, limit.measured_core_ms) == (route, 30, 8)
        assert limit.front_images_per_s == 70
        assert limit.core_ms == pytest.approx(10 + figure.core_ms)
        assert limit.shares[-1].core_ms == answer
