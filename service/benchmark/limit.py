"""How many images a second the stages by themselves would allow, and how near to that the whole service comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model.benchmark.timing import Figures, Operation
from service.benchmark.results import Limit, LoadFigures, Served, Share, StageCost
from service.benchmark.stages import JSON_VECTOR, PNG_COMPOSITE

# What the routes do when nothing else is asked for: whole images are embedded, a quarter of the patches reconstructs.
OPERATIONS: Mapping[str, Operation] = {
    "/embed": "embed",
    "/embed, multipart": "embed",
    "/reconstruct": "reconstruct",
}


def limits_of(
    engine: Sequence[Figures],
    stages: Sequence[StageCost],
    front: Served,
    service: Served,
    sample: str,
    cores: int,
    on_accelerator: bool = False,
) -> list[Limit]:
    """The limit of every route of which all figures are there.

    Args:
        engine: its figures; those of full batches on all lanes count.
        stages: decoding and answers by themselves.
        front: the server with an engine that answers at once.
        service: the whole one.
        sample: the name of the images that the servers were sent.
        cores: that there are.
        on_accelerator: see `limit_of`.
    """
    decode = _cost(stages, "decode", sample)
    found = []
    for route, operation in OPERATIONS.items():
        answer = _cost(stages, "answer", JSON_VECTOR if operation == "embed" else PNG_COMPOSITE)
        web, whole, full = front.best(route), service.best(route), full_batches(engine, operation)
        if decode and answer and web and whole and full:
            limit = limit_of(route, decode, answer, web, full, whole, cores, on_accelerator)
            found += [limit] if limit else []
    return found


def full_batches(engine: Sequence[Figures], operation: Operation) -> Figures | None:
    """The largest batch on all lanes at once, for as many visible patches as the route takes by itself."""
    of_operation = [figure for figure in engine if figure.operation == operation]
    if not of_operation:
        return None
    visible = {figure.visible for figure in of_operation}
    wanted = max(visible) if operation == "embed" else min(visible)
    return max(
        (figure for figure in of_operation if figure.visible == wanted), key=lambda figure: (figure.batch, figure.lanes)
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
    """Cores over core-seconds an image, where decoding, web, answer and engine cost what they cost by themselves.

    Args:
        route: its name.
        decode: decoding by itself.
        answer: writing the answer by itself.
        front: the server without an engine: web, decoding and answer together.
        engine: full batches on all lanes.
        whole: the service at its best.
        cores: that there are.
        on_accelerator: the engine's work is not on the cores, so that it is a limit of its own.

    Returns:
        None where the kernel does not tell what processes use.
    """
    if front.core_ms is None or whole.core_ms is None or whole.load_core_ms is None:
        return None
    parts = {
        "web and batching": front.core_ms - decode.core_ms - answer.core_ms,
        "decode": decode.core_ms,
        "engine": engine.core_ms,
        "answer": answer.core_ms,
    }
    total = sum(parts.values())
    most = engine.images_per_s if on_accelerator else float("inf")
    alone = min(most, 1000 * cores / total)
    beside = min(most, 1000 * cores / (total + whole.load_core_ms))
    return Limit(
        route=route,
        shares=tuple(Share(stage=name, core_ms=cost, share=cost / total) for name, cost in parts.items()),
        core_ms=total,
        cores=cores,
        images_per_s=alone,
        beside_load_images_per_s=beside,
        load_core_ms=whole.load_core_ms,
        measured_images_per_s=whole.images_per_s,
        measured_core_ms=whole.core_ms,
        measured_cores=whole.core_ms * whole.images_per_s / 1000,
        front_images_per_s=front.images_per_s,
        ratio=whole.images_per_s / alone,
        ratio_beside_load=whole.images_per_s / beside,
    )


def _cost(stages: Sequence[StageCost], stage: str, what: str) -> StageCost | None:
    return next((cost for cost in stages if (cost.stage, cost.what) == (stage, what)), None)
