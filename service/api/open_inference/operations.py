"""What each model of the Open Inference Protocol computes: a parsed request -> the tensors of its response.

All of it goes through the same pipeline as the service's own routes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from model.arrays import Floats, Indices
from model.images.preprocess import unpatchify
from model.masking import removed_flags
from service.api.open_inference.images import MASK, read_images, read_masks
from service.api.open_inference.messages import InferenceRequest
from service.api.open_inference.models import ModelDescription, ModelName
from service.api.open_inference.tensors import Tensor
from service.api.request import RequestContext
from service.errors import InvalidParameter
from service.inference.classification import classify_images
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.images import Image, VisiblePatches
from service.inference.pipeline import Pipeline
from service.inference.reconstruction import MaskPlan, choose_patches_to_remove, reconstruct_images, require_one_mask
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters, ReconstructParameters, invalid_parameter

P = TypeVar("P", bound=BaseModel)
RESERVED = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
"""Parameters that belong to the protocol, and so do those that begin with `RESERVED_PREFIX`."""
RESERVED_PREFIX = "triton_"
MAX_DIGITS = 20
"""A number that is written as text has fewer digits."""
EMBED = ("pool", "whiten", "dimensions", "normalize", "keep", "min_keep", "seed")
TOKENS = ("normalize", "keep", "min_keep", "seed")
RECONSTRUCT = ("mask_ratio", "strategy", "seed", "patches")
"""The parameters that each model takes; the same as those of the service's own routes."""


@dataclass(frozen=True)
class Answer:
    """What a model has computed for a request."""

    count: int
    """Number of images."""
    write: Callable[[], list[Tensor]]
    """Makes the outputs of the response; it may take long."""
    size: int
    """Number of values in all outputs, about."""
    space: str | None = None
    """The vector space, where there are vectors."""
    seed: int | None = None
    """The seed that chose patches; None where none did."""
    keep: float | None = None
    """The share of the patches that was encoded, where there are vectors."""


Run = Callable[[RequestContext], Coroutine[Any, Any, Answer]]
"""Runs a model on the images of a request."""


def timeout_s(request: InferenceRequest) -> float | None:
    """The seconds that the client wants to wait; None if it does not say. The protocol counts microseconds.

    Raises:
        InvalidParameter: the parameter is no number of microseconds.
    """
    timeout = request.parameters.get("timeout", 0)
    if isinstance(timeout, str) and timeout.isascii() and timeout.isdecimal() and len(timeout) < MAX_DIGITS:
        timeout = int(timeout)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 0:
        raise InvalidParameter("timeout: it must be a whole number of microseconds", parameter="timeout")
    return timeout / 1e6 or None


def require_outputs(model: ModelDescription, request: InferenceRequest) -> None:
    """Checks that the model has the outputs that a request asks for, and that it says how they are sent.

    Raises:
        InvalidParameter: it has not, classes are asked for where there are none, or `binary_data_output` is neither
            true nor false.
    """
    if not isinstance(request.parameters.get("binary_data_output"), bool | None):
        raise InvalidParameter("binary_data_output: it must be true or false", parameter="binary_data_output")
    known = [output.name for output in model.outputs]
    for name, output in request.outputs.items():
        if name not in known:
            raise InvalidParameter(
                f"outputs: the model {model.name} has no {name[:30]}: it has {', '.join(known)}", parameter="outputs"
            )
        if output.classes and model.name != "classify":
            raise InvalidParameter("classification: the model classify alone names classes", parameter="classification")


def select_outputs(outputs: Sequence[Tensor], request: InferenceRequest) -> list[Tensor]:
    """The outputs that a request asks for, in its order; all of them if it names none."""
    by_name = {output.name: output for output in outputs}
    return [by_name[name] for name in request.outputs or by_name]


def prepare(model: ModelName, request: InferenceRequest, pipeline: Pipeline, max_images: int) -> Run:
    """Checks the parameters and the images of a request.

    Args:
        model: the model that is asked.
        request: parsed.
        pipeline: to the engine.
        max_images: how many images a request may have.

    Returns:
        A function that runs the model.

    Raises:
        ServiceError: a parameter or an input is not what the model takes.
    """
    own = {name: value for name, value in request.parameters.items() if not _is_reserved(name)}
    config = pipeline.info.config

    def images(takes_patches: bool = False, takes_mask: bool = False) -> list[Any]:
        return read_images(request.inputs, config, max_images, takes_patches, takes_mask)

    if model in ("embed", "tokens"):
        return _prepare_embedding(model, own, images, pipeline)
    if model == "classify":
        _require_known(own, ())
        classes = request.outputs["probabilities"].classes if "probabilities" in request.outputs else 0
        return _prepare_classification(images(), classes, pipeline)
    parameters = _read_parameters(ReconstructParameters, own, RECONSTRUCT)
    return _prepare_reconstruction(parameters, request, images, pipeline)


def _prepare_embedding(
    model: ModelName, own: Mapping[str, Any], read: Callable[..., list[Image]], pipeline: Pipeline
) -> Run:
    info = pipeline.info
    parameters = _read_parameters(EmbedParameters, own, TOKENS if model == "tokens" else EMBED)
    if model == "tokens":
        parameters = parameters.model_copy(update={"pool": "tokens"})
    elif parameters.pool == "tokens":
        raise InvalidParameter(
            "pool: the model embed gives one vector per image: ask the model tokens", parameter="pool"
        )
    plan = EmbeddingPlan.of(parameters, info, pipeline.heads)
    images = read(takes_patches=True)
    sent: list[Indices] = [image.visible_indices for image in images if isinstance(image, VisiblePatches)]
    if sent:
        for name in ("keep", "min_keep", "seed"):
            if name in own:
                raise InvalidParameter(
                    f"{name}: the input patches holds the patches to encode, so {name} cannot be given", parameter=name
                )
        # A region, as on /embed; `space_of` says that it is one, and not which.
        plan = plan.encode_inside(sent[0].tolist(), "patches")

    async def run(context: RequestContext) -> Answer:
        vectors, done = await embed_images(pipeline, context.images_to_infer(images), plan)

        def write() -> list[Tensor]:
            finished = done.finish(vectors)
            if model == "embed":
                return [Tensor.of("embedding", finished)]
            positions = np.stack(sent or [done.visible_indices] * len(vectors))
            return [Tensor.of("tokens", finished), Tensor.of("positions", positions)]

        size = len(vectors) * vectors[0].size
        return Answer(len(vectors), write, size, space_of(info, done.parameters), done.seed, done.keep(info.config))

    return run


def _prepare_classification(images: list[Any], classes: int, pipeline: Pipeline) -> Run:
    labels = pipeline.head.config.classes

    async def run(context: RequestContext) -> Answer:
        probabilities = np.stack(await classify_images(pipeline, context.images_to_infer(images)))

        def write() -> list[Tensor]:
            if classes:
                return [_name_classes(probabilities, labels, min(classes, len(labels)))]
            return [Tensor.of("probabilities", probabilities)]

        return Answer(len(images), write, probabilities.size)

    return run


def _prepare_reconstruction(
    parameters: ReconstructParameters, request: InferenceRequest, read: Callable[..., list[Any]], pipeline: Pipeline
) -> Run:
    config = pipeline.info.config
    if MASK in request.inputs:
        require_one_mask(MASK, parameters)
        plan = None
    else:
        plan = choose_patches_to_remove(config, parameters)
    images = read(takes_mask=True)
    if plan is None:
        masks = read_masks(request.inputs[MASK], len(images), config.num_patches)
        plan = MaskPlan((), lambda image, reserved: masks[image.index])

    async def run(context: RequestContext) -> Answer:
        by_image = await reconstruct_images(pipeline, context.images_to_infer(images, caches=False), plan)
        found = [passes[0] for passes in by_image]

        def write() -> list[Tensor]:
            masks = [removed_flags(image.visible_indices, config.num_patches) for image in found]
            return [
                Tensor.of("pixels", np.stack([unpatchify(image.pixels) for image in found])),
                Tensor.of("error", np.stack([image.error for image in found])),
                Tensor.of("mask", np.stack(masks)),
            ]

        return Answer(len(found), write, len(found) * found[0].pixels.size, seed=plan.seed)

    return run


def _name_classes(probabilities: Floats, labels: Sequence[str], count: int) -> Tensor:
    """The most probable classes of each image, BYTES [B, count]: `probability:index:label`, as Triton writes them."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    elements = [
        f"{image[index]:f}:{index}:{labels[index]}".encode()
        for image, indices in zip(probabilities, order, strict=True)
        for index in indices
    ]
    return Tensor("probabilities", "BYTES", order.shape, elements)


def _read_parameters(kind: type[P], own: Mapping[str, Any], known: Collection[str]) -> P:
    """The parameters of a request, of those that the model takes."""
    _require_known(own, known)
    try:
        return kind.model_validate(own)
    except ValidationError as error:
        raise invalid_parameter(error.errors()[0]) from error


def _require_known(own: Mapping[str, Any], known: Collection[str]) -> None:
    for name in own:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InvalidParameter(f"{name[:30]}: the model has no such parameter: {takes}", parameter=name[:30])


def _is_reserved(name: str) -> bool:
    return name in RESERVED or name.startswith(RESERVED_PREFIX)
