"""Building an engine on an NVIDIA GPU by TensorRT, and the sizes of engines on a GPU."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from model.config import MAEConfig
from model.engines.base import EngineError, Precision, TensorRTError
from model.engines.cache import fingerprint
from model.engines.context import BuildContext
from model.engines.cuda import identity
from model.engines.cuda.engine import DeviceEngine
from model.engines.cuda.tensorrt import TensorRTGraphs
from model.engines.entry import read_model, read_reference
from model.engines.fingerprint import code_digest
from model.engines.job import ConversionJob, ModelSpec

DEFAULT_BATCH, DEFAULT_LANES = 64, 2
"""Images per batch and number of lanes: with two lanes, the copies of one overlap the computing of the other."""


def build_tensorrt(context: BuildContext) -> DeviceEngine:
    """Loads or makes the TensorRT engines, and checks their parity.

    Raises:
        WeightsError: the weights cannot be read.
        TensorRTError: TensorRT cannot build or load the model.
        ParityError: the engine does not compute what the model computes.
    """
    settings, source = context.settings, context.source
    distribution = identity.installed_distribution()
    assert distribution is not None, "choose_backend has looked"
    runtime, gpu = identity.tensorrt_runtime(distribution), identity.this_gpu()
    precision, max_batch_size = device_precision(context), settings.max_batch or DEFAULT_BATCH
    ingredients = tensorrt_ingredients(
        context.model, source.digest, precision, max_batch_size, gpu, distribution, runtime.__version__
    )
    job = ConversionJob(context.model, "tensorrt", precision, max_batch_size)
    folder = context.obtain_entry(f"tensorrt-{fingerprint(ingredients)}", job)
    model = read_model(folder)
    info = context.describe(
        model,
        precision,
        **device_sizes(context, model.config),
        entry=folder.name,
        libraries={distribution: version(distribution), "tensorrt": str(runtime.__version__), "driver": gpu.driver},
    )
    context.progress(f"loading the TensorRT engines of {source.name} onto {gpu.name}")
    try:
        engine = DeviceEngine(TensorRTGraphs(folder, info, runtime), info, bool(settings.cuda_graphs))
        context.check(engine, read_reference(folder), (1, max_batch_size))
    except EngineError as error:
        raise TensorRTError(str(error)) from error
    return engine


def tensorrt_ingredients(
    model: ModelSpec,
    digest: str,
    precision: Precision,
    max_batch_size: int,
    gpu: identity.Gpu,
    distribution: str,
    runtime: str,
) -> dict[str, object]:
    """All that a TensorRT engine depends on, for its fingerprint.

    Args:
        model: the model, and the operator's options for it.
        digest: SHA-256 of the weights.
        precision: the precision of the matrix products.
        max_batch_size: the largest batch.
        gpu: the GPU that the engine is built on.
        distribution: the package that builds the engine.
        runtime: the version of the module that runs it.
    """
    return {
        **asdict(model),
        "path": digest,
        "code": code_digest("tensorrt"),
        "precision": precision,
        "max_batch_size": max_batch_size,
        "gpu": asdict(gpu),
        "distribution": distribution,
        "versions": {name: version(name) for name in ("torch", distribution)} | {"tensorrt": runtime},
    }


def supports_padding(config: MAEConfig, max_batch_size: int) -> bool:
    """Whether a batch may hold images with different numbers of visible patches.

    On a GPU small batches cost nearly as much as full ones. On a CPU they do not, and padding gains nothing there.
    """
    return config.family == "vit" and max_batch_size > 1


def device_precision(context: BuildContext) -> Precision:
    """The precision of an engine on a GPU: half precision, unless the operator names another one."""
    return "fp16" if context.settings.precision == "auto" else context.settings.precision


def device_sizes(context: BuildContext, config: MAEConfig) -> dict[str, Any]:
    """Lanes, threads and largest batch of an engine on a GPU, as `BuildContext.describe` takes them."""
    max_batch_size = context.settings.max_batch or DEFAULT_BATCH
    return {
        "lanes": context.settings.lanes or DEFAULT_LANES,
        "threads_per_lane": 1,
        "max_batch_size": max_batch_size,
        "mixes": supports_padding(config, max_batch_size),
    }
