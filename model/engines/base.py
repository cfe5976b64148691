"""The engine protocol: a compiled model behind three calls, its description, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads
from model.checkpoints.memory_bank import MemoryBankInfo
from model.checkpoints.native import HeadConfig, Pooled
from model.config import MAEConfig, Preprocessing
from model.engines.batch_seconds import BatchCurves

Precision = Literal["fp32", "bf16", "fp16", "int8"]
ComputedPrecision = Literal["fp32", "bf16", "emulated bf16", "fp16", "int8"]
BackendName = Literal["tensorrt", "openvino", "torch"]
TorchMode = Literal["eager", "cuda graphs", "compile"]
"""How torch runs the graphs on a GPU: as they are, recorded as CUDA graphs, or compiled and then recorded."""
Backend = Literal["auto", BackendName]
"""The backend that the operator asks for; `auto` chooses the fastest that the machine can run."""


@dataclass(frozen=True)
class BackendChoice:
    """A backend, and the device it runs on."""

    backend: BackendName
    device: Literal["cuda", "cpu"]
    fallback: str | None = None
    """Why this is not the preferred backend; None if it is."""


class EngineError(Exception):
    """An engine could not run a batch; the next batch may succeed."""


class FatalEngineError(EngineError):
    """The device or the runtime has failed for good: no later batch will succeed in this process."""


class EngineBuildError(Exception):
    """An engine cannot be made, or must not serve; the message gives the reason."""


class BuildTimeout(EngineBuildError):
    """A step of a build was ended because its time was over."""


class TensorRTError(EngineBuildError):
    """TensorRT cannot be imported, or cannot build or load this model; another backend may."""


class Parity(BaseModel):
    """How far an engine lies from eager float32 on the same images; each figure but the mean is the worst image's."""

    model_config = ConfigDict(frozen=True)

    cosine: float
    """Cosine of embeddings after the mean over the images is subtracted from both."""
    mean_cosine: float | None = None
    """The same, averaged over the images; the least of four: cls and mean vector, whole and masked."""
    psnr_db: float | None = None
    """PSNR of reconstructed pixels in decibels, at most 99; none without a decoder."""
    loss_difference: float | None = None
    """Relative difference of the masked loss; none without a decoder."""


class Quantisation(BaseModel):
    """How graphs were quantised to eight bits, and how far they lie from eager float32 on other photographs."""

    model_config = ConfigDict(frozen=True)

    photographs: int
    """Number of photographs that the graphs were calibrated on."""
    held_out: int
    """Number of other photographs that the graphs were measured on."""
    digest: str
    """SHA-256 over all photographs, hexadecimal."""
    nncf: str
    """Version of NNCF, which quantised the graphs."""
    parity: Parity
    """Parity on the photographs held out."""


class MeasuredPrecision(BaseModel):
    """The precision that `PRECISION=auto` chose on this kind of CPU, and the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    images_per_core_s: dict[Precision, float]
    """Images per core-second of each precision that passed its parity check.

    Measured with one image at a time, whole and with a quarter of the patches visible. Empty where float32 alone could
    serve.
    """
    left_out: dict[Precision, str]
    """Precisions that did not pass, with the reason."""

    @property
    def reason(self) -> str:
        """The choice and its reason in one line."""
        rates = ", ".join(f"{precision} {rate:.3g}" for precision, rate in self.images_per_core_s.items())
        why = f"images per core-second: {rates}" if rates else "there is nothing to compare it with"
        return "; ".join([why, *(f"{precision} left out: {reason}" for precision, reason in self.left_out.items())])


class MeasuredMode(BaseModel):
    """The mode in which torch runs the graphs on a GPU, and the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: TorchMode
    images_per_s: dict[TorchMode, dict[int, float]]
    """Images per second of each mode that passed its parity check, by batch size, on all lanes together.

    Measured with whole images and with a quarter of the patches visible. Empty where there was one mode alone.
    """
    left_out: dict[TorchMode, str]
    """Modes that cannot serve here, with the reason."""

    @property
    def reason(self) -> str:
        """The choice and its reason in one line."""
        rates = ", ".join(
            f"{mode} {' and '.join(f'{rate:.3g}' for rate in by_batch.values())}"
            for mode, by_batch in self.images_per_s.items()
        )
        sizes = next(iter(self.images_per_s.values()), {})
        batches = " and ".join(map(str, sizes))
        why = f"images/s in batches of {batches}: {rates}" if rates else "there is nothing to compare it with"
        return "; ".join([why, *(f"{mode} left out: {reason}" for mode, reason in self.left_out.items())])


class EngineInfo(BaseModel):
    """The description of an engine. Model, precision and preprocessing together name a vector space."""

    model_config = ConfigDict(frozen=True)

    backend: BackendName
    precision: Precision
    """The precision that was asked for, or that PRECISION=auto chose."""
    computes: ComputedPrecision
    """The precision that matrix products are really computed in: a CPU without the instructions may use another one.

    An image's outputs have the same bits alone and in any batch where this is fp32 or int8, and in bf16 by OpenVINO.
    """
    device: str
    model: str
    weights: str
    """SHA-256 of the weights, hexadecimal."""
    layout: str
    """The format of the checkpoint."""
    license: str | None
    config: MAEConfig
    preprocessing: Preprocessing
    lanes: int
    """Batches that run at once."""
    threads_per_lane: int
    preferred_batch: int
    """The largest batch that is worth it on a lane; on a GPU, or with MAX_BATCH, the largest of all."""
    batch_curves: BatchCurves | None = None
    """Seconds of batches by size; none until they are measured, and where nobody measures them."""
    joined: bool = False
    """Whether there is a joined lane, with the number `lanes`: it runs one batch on the threads of all lanes."""
    joined_mb: float | None = None
    """Memory in MB that the joined lane took when it was made; none without one."""
    mixes: bool = False
    """Whether images of a batch may differ in their number of visible patches; see `Engine`."""
    versions: dict[str, str]
    head: HeadConfig | None = None
    """The classification head, if there is one."""
    notes: tuple[str, ...] = ()
    """What the checkpoint did not tell and what was taken instead, and what else was changed on reading it."""
    whitening: tuple[Pooled, ...] = ()
    """The pooled vectors that can be whitened."""
    memory_bank: MemoryBankInfo | None = None
    """The size of the memory bank of normal images, by which /anomaly compares features, if there is one."""
    parity: Parity | None = None
    quantisation: Quantisation | None = None
    """How the graphs were quantised, if the engine is in int8."""
    auto: MeasuredPrecision | None = None
    """How PRECISION=auto chose, if OpenVINO serves by it."""
    torch: MeasuredMode | None = None
    """How torch runs the graphs, if it serves on a GPU."""
    attention: dict[str, str] = {}
    """The attention kernel that torch takes on a GPU, by graph: flash, memory-efficient, cudnn or math."""
    entry: str | None = None
    """The name of the engine's entry in the engine cache; none for torch unless it serves compiled graphs."""
    fallback: str | None = None
    """Why this is not the preferred backend; none if it is."""

    @cached_property
    def model_id(self) -> str:
        """Name and hash of the weights in one word."""
        return f"{self.model}@{self.weights[:12]}"


class Engine(Protocol):
    """A compiled masked autoencoder. A lane is used by one thread at a time; different lanes run at once.

    N is the number of patches, K of visible patches, P of values per patch, D of values per token.

    Where `info.mixes` is true, images of a batch may differ in K. A batch then has the largest K, and the last indices
    of the other images are -1 (`model.masking.PAD`). The patches there are ignored, and their tokens mean nothing.
    """

    info: EngineInfo

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """Visible patches uint8 [B, K, P] at int32 [B, K] -> float32 [B, 2, D]: cls, mean of the patch tokens."""

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """Visible patches uint8 [B, K, P] at int32 [B, K] -> float32 [B, K, D]."""

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """All patches uint8 [B, N, P], visible int32 [B, K] -> pixels uint8 [B, N, P], squared error float32 [B, N]."""


@dataclass(frozen=True)
class MeasureStep:
    """One batch size that is measured on one or several lanes, while no other lane runs anything."""

    lanes: tuple[int, ...]
    """The lanes that run it at the same time. The joined lane has the number `EngineInfo.lanes`."""
    operation: Literal["embed", "reconstruct"]
    images: int
    """Images of the batch of each lane."""
    run: Callable[[int], float]
    """Takes a lane, runs its batch, and returns the seconds; raises what the engine raises."""
    record: Callable[[float], None]
    """Takes the seconds of the slowest lane. A step that was disturbed need not be recorded: it then comes again."""


class CurveMeasurement(Protocol):
    """Measures the seconds of batches in short steps, in which an engine that serves has nothing else to do.

    After the last step the description of the engine has the curves, the preferred batch, and whether there is a joined
    lane. All methods are called by one thread at a time.
    """

    curves: BatchCurves | None
    """The result; None until the last step is recorded."""

    def prepare(self) -> None:
        """Makes the joined lane, if the engine is to have one, and checks it; this takes seconds for a large model.

        Call it before the first step, in a thread of its own. The other lanes may run batches meanwhile.
        """

    def next_step(self) -> MeasureStep | None:
        """The next step, which is the same until it is recorded; None after the last one."""

    def abandon(self) -> None:
        """Frees what has been made for the measurement, if no last step will come: nobody can plan a joined lane then.

        No step may run on the joined lane.
        """


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served: its engine, and the heads that the host applies to pooled vectors."""

    engine: Engine
    heads: Heads = field(default_factory=Heads)
    image_seconds: float = 0.0
    """Seconds of a lane for an image, whole and with a quarter of its patches; 0 if nobody has measured them."""
    measurement: CurveMeasurement | None = None
    """Measures `info.batch_curves` after the engine is ready; None if there is nothing to measure."""

    @property
    def info(self) -> EngineInfo:
        """The description of the engine."""
        return self.engine.info


def gather_visible(patches: Bytes, visible_indices: Indices) -> Bytes:
    """Patches uint8 [B, N, P] at int32 [B, K] -> uint8 [B, K, P]."""
    return patches[np.arange(len(patches))[:, None], visible_indices]
