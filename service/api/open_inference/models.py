"""The models that the Open Inference Protocol names: one for each thing that the service computes of an image.

A client that names no outputs gets all of a model, and some always ask for all. So each operation is a model of its
own with few outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.engines.base import EngineInfo
from service.errors import ModelNotFound
from service.inference.pipeline import Pipeline
from service.inference.served_name import names_of, served_name_of

ModelName = Literal["embed", "tokens", "classify", "reconstruct"]
VERSION = "1"
"""The one version of every model."""
PLATFORM = "mae-serve"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics")
"""The extensions of the protocol that are served."""


@dataclass(frozen=True)
class TensorDescription:
    """An input or an output of a model."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    """The sizes after the batch's; -1 for one that varies."""


@dataclass(frozen=True)
class ModelDescription:
    """A model as its metadata describe it."""

    name: ModelName
    outputs: tuple[TensorDescription, ...]
    inputs: tuple[TensorDescription, ...] = (TensorDescription("image", "BYTES", (1,)),)
    """What a client that knows nothing else sends; `read_images` also takes other inputs in its place."""


def describe_models(info: EngineInfo) -> Mapping[ModelName, ModelDescription]:
    """The models that an engine can serve; one without a head or a decoder lacks some."""
    config = info.config
    num_patches, width, side = config.num_patches, config.embed_dim, config.image_size
    models = [
        ModelDescription("embed", (TensorDescription("embedding", "FP32", (width,)),)),
        ModelDescription(
            "tokens",
            (TensorDescription("tokens", "FP32", (-1, width)), TensorDescription("positions", "INT32", (-1,))),
        ),
    ]
    if info.head is not None:
        probabilities = TensorDescription("probabilities", "FP32", (len(info.head.classes),))
        models.append(ModelDescription("classify", (probabilities,)))
    if config.has_decoder:
        outputs = (
            TensorDescription("pixels", "UINT8", (side, side, 3)),
            TensorDescription("error", "FP32", (num_patches,)),
            TensorDescription("mask", "UINT8", (num_patches,)),
        )
        models.append(ModelDescription("reconstruct", outputs))
    return {model.name: model for model in models}


def find_model(name: str, version: str, pipeline: Pipeline) -> ModelDescription:
    """The model that a client calls `name`; every name of the served model means `embed`.

    Raises:
        ModelNotFound: there is no such model, or no such version of it.
        NoHead, NoDecoder: the weights lack what it needs.
    """
    if name == "classify":
        _ = pipeline.head  # or the error that says how to get one
    if name == "reconstruct":
        pipeline.require_decoder()
    described = describe_models(pipeline.info)
    models: dict[str, ModelDescription] = dict.fromkeys(names_of(pipeline.info), described["embed"])
    models.update((str(known), model) for known, model in described.items())
    if name not in models:
        raise ModelNotFound(f"there is no model {name[:100]}: there are {', '.join(all_names(pipeline.info))}")
    if version != VERSION:
        raise ModelNotFound(f"the model {name} has no version {version[:20]}: it has version {VERSION} alone")
    return models[name]


def all_names(info: EngineInfo) -> list[str]:
    """The names of all models that can be asked, each once; the served model has more, for `find_model`."""
    return list(dict.fromkeys([*describe_models(info), served_name_of(info)]))


def metadata(name: str, model: ModelDescription) -> dict[str, Any]:
    """The metadata of a model that the client calls `name`."""

    def describe(tensor: TensorDescription) -> dict[str, Any]:
        return {"name": tensor.name, "datatype": tensor.datatype, "shape": [-1, *tensor.dims]}

    return {
        "name": name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [describe(tensor) for tensor in model.inputs],
        "outputs": [describe(tensor) for tensor in model.outputs],
    }


def configuration(name: str, model: ModelDescription, info: EngineInfo, max_images: int) -> dict[str, Any]:
    """The configuration of a model, as Triton has it (ModelConfig); the sizes leave out the batch."""

    def describe(tensor: TensorDescription) -> dict[str, Any]:
        kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
        return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(tensor.dims)}

    return {
        "name": name,
        "platform": PLATFORM,
        "max_batch_size": max_images,
        "input": [describe(tensor) for tensor in model.inputs],
        "output": [describe(tensor) for tensor in model.outputs],
        "dynamic_batching": {},
        "instance_group": [{"kind": "KIND_CPU" if info.device == "cpu" else "KIND_GPU", "count": info.lanes}],
    }
