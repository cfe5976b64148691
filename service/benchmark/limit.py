"""The throughput that the stages alone would allow, and the share of it that the whole service reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model.benchmark.timing import Figures, Operation
from service.benchmark.results import Limit, LoadFigures, ServerFigures, StageCost, StageShare
from service.benchmark.stages import JSON_VECTOR, PNG_COMPOSITE

# With their defaults, /embed encodes whole images and /reconstruct a quarter of the patches.
OPERATIONS: Mapping[str, Operation] = {
    "/embed": "embed",
    "/embed, multipart": "embed",
    "/reconstruct": "reconstruct",
}


def limits_of(
    engine: Sequence[Figures],
    stages: Sequence[StageCost],
    front: ServerFigures,
    service: ServerFigures,
    sample: str,
    cores: int,
    on_accelerator: bool = False,
) -> list[Limit]:
    """The limit of every route for which all parts were measured.

    Args:
        engine: figures of the engine alone; those of full batches on all lanes are used.
        stages: costs of decoding and of writing answers.
        front: figures of the server with an engine that answers at once.
        service: figures of the whole service.
        sample: the name of the images that the servers were sent.
        cores: CPU cores that may be kept busy.
        on_accelerator: as for `limit_of`.
    """
    decode = _find_cost(stages, "decode", sample)
    limits = []
    for route, operation in OPERATIONS.items():
        answer = _find_cost(stages, "answer", JSON_VECTOR if operation == "embed" else PNG_COMPOSITE)
        front_best, service_best = front.best(route), service.best(route)
        full = full_batches(engine, operation)
        if decode and answer and front_best and service_best and full:
            limit = limit_of(route, decode, answer, front_best, full, service_best, cores, on_accelerator)
            limits += [limit] if limit else []
    return limits


def full_batches(engine: Sequence[Figures], operation: Operation) -> Figures | None:
    """The figures of the largest batch on all lanes, with as many visible patches as the route encodes by default."""
    of_operation = [figure for figure in engine if figure.operation == operation]
    if not of_operation:
        return None
    counts = {figure.visible for figure in of_operation}
    num_visible = max(counts) if operation == "embed" else min(counts)
    return max(
        (figure for figure in of_operation if figure.visible == num_visible),
        key=lambda figure: (figure.batch, figure.lanes),
    )


def limit_of(
    route: str,
    decode: StageCost,
    answer: StageCost,
    front: LoadFigures,
    engine: Figures,
    whole: LoadFigures,
    cores: int,
    on_accelerator: bool = False,
) -> Limit | None:
    """Computes the limit of a route: cores over the core-seconds per image of all stages, each measured alone.

    Args:
        route: the name of the route.
        decode: the cost of decoding alone.
        answer: the cost of writing the answer alone.
        front: the server without an engine: web, decoding and answer together.
        engine: the engine alone, with full batches on all lanes.
        whole: the service at its best.
        cores: CPU cores that may be kept busy.
        on_accelerator: whether the engine runs on a GPU and not on the cores, so that its throughput is a limit too.

    Returns:
        None where the system does not tell the CPU time of processes.
    """
    if front.core_ms is None or whole.core_ms is None or whole.load_core_ms is None:
        return None
    core_ms = {
        "web and batching": front.core_ms - decode.core_ms - answer.core_ms,
        "decode": decode.core_ms,
        "engine": engine.core_ms,
        "answer": answer.core_ms,
    }
    total = sum(core_ms.values())
    engine_limit = engine.images_per_s if on_accelerator else float("inf")
    limit = min(engine_limit, 1000 * cores / total)
    limit_beside_load = min(engine_limit, 1000 * cores / (total + whole.load_core_ms))
    return Limit(
        route=route,
        shares=tuple(StageShare(stage=stage, core_ms=cost, share=cost / total) for stage, cost in core_ms.items()),
        core_ms=total,
        cores=cores,
        images_per_s=limit,
        beside_load_images_per_s=limit_beside_load,
        load_core_ms=whole.load_core_ms,
        measured_images_per_s=whole.images_per_s,
        measured_core_ms=whole.core_ms,
        measured_cores=whole.core_ms * whole.images_per_s / 1000,
        front_images_per_s=front.images_per_s,
        ratio=whole.images_per_s / limit,
        ratio_beside_load=whole.images_per_s / limit_beside_load,
    )


def _find_cost(stages: Sequence[StageCost], stage: str, subject: str) -> StageCost | None:
    return next((cost for cost in stages if (cost.stage, cost.what) == (stage, subject)), None)
