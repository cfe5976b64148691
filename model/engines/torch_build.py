"""An engine by torch: eager on a CPU, or with lanes and CUDA graphs on a GPU."""

from __future__ import annotations

from model.engines.base import Engine
from model.engines.context import BuildContext
from model.engines.cpu import available_cpus
from model.engines.cuda.torch_engine import build_torch_on_gpu
from model.engines.eager import EagerEngine, configure_torch
from model.engines.outputs import collect_outputs
from model.engines.reference import EAGER_BATCH, load_model, reference_engine


def build_torch(context: BuildContext) -> Engine:
    """Loads the model into torch, and checks its parity.

    On a CPU this sets torch's number of threads for the whole process: each lane gets its share of the CPUs.

    Raises:
        WeightsError: the weights cannot be read.
        EngineBuildError: the engine cannot be made.
        ParityError: the engine does not compute what the model computes.
    """
    settings = context.settings
    context.progress(f"loading {context.source.name} into torch")
    checkpoint, model = load_model(context.model)
    configure_torch(available_cpus())
    reference = collect_outputs(reference_engine(checkpoint, model))
    if context.choice.device == "cuda":
        return build_torch_on_gpu(context, checkpoint, model, reference)
    lanes = settings.lanes or 1
    threads = max(1, available_cpus() // lanes)
    configure_torch(threads)
    info = context.describe(
        model,
        "fp32" if settings.precision == "auto" else settings.precision,
        lanes=lanes,
        threads_per_lane=threads,
        max_batch_size=settings.max_batch or EAGER_BATCH,
    )
    engine = EagerEngine(checkpoint, info)
    context.check(engine, reference)
    return engine
