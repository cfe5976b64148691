"""What an engine is: the compiled model behind three calls, and what it says of itself."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads
from model.checkpoints.native import HeadConfig, Pooled
from model.config import MAEConfig, Preprocessing

Precision = Literal["fp32", "bf16", "fp16", "int8"]
ComputedPrecision = Literal["fp32", "bf16", "emulated bf16", "fp16", "int8"]
BackendName = Literal["tensorrt", "openvino", "torch"]


class EngineError(Exception):
    """A batch that an engine could not run; the next one may succeed."""


class FatalEngineError(EngineError):
    """The device or the runtime is beyond help: nothing more will succeed in this process."""


class EngineBuildError(Exception):
    """An engine that cannot be made or must not serve; the message says why."""


class TensorRTError(EngineBuildError):
    """TensorRT cannot be imported, or cannot build or load this model; another backend may."""


class Parity(BaseModel):
    """How far an engine lies from eager float32 on the same images (worst image of each figure, but for the mean)."""

    model_config = ConfigDict(frozen=True)

    cosine: float
    """Cosine of embeddings after the mean over the images is subtracted from both."""
    mean_cosine: float | None = None
    """The same, averaged over the images: the least of cls and mean, whole and masked."""
    psnr_db: float | None = None
    """Of reconstructed pixels, at most 99; none without a decoder."""
    loss_difference: float | None = None
    """Relative difference of the masked loss; none without a decoder."""


class Quantisation(BaseModel):
    """How graphs came to have eight bits, and what that cost on photographs that played no part in it."""

    model_config = ConfigDict(frozen=True)

    photographs: int
    """How many it was calibrated on."""
    held_out: int
    """How many others it was measured on."""
    digest: str
    """SHA-256 over all of them, hexadecimal."""
    nncf: str
    """Version of the package that quantised."""
    parity: Parity
    """On those held out."""


class MeasuredPrecision(BaseModel):
    """What `PRECISION=auto` came to on this kind of processor, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    images_per_core_s: dict[Precision, float]
    """Images a second of one core, of those that passed their gates: one at a time, whole and through a quarter.

    Empty where nothing but float32 could serve.
    """
    left_out: dict[Precision, str]
    """Those that did not pass, and why."""

    @property
    def reason(self) -> str:
        """All of it in one line."""
        rates = ", ".join(f"{precision} {rate:.3g}" for precision, rate in self.images_per_core_s.items())
        why = f"images a core-second: {rates}" if rates else "there is nothing to compare it with"
        return "; ".join([why, *(f"{precision} left out: {reason}" for precision, reason in self.left_out.items())])


class EngineInfo(BaseModel):
    """What an engine serves and how: model, precision and preprocessing together name a vector space."""

    model_config = ConfigDict(frozen=True)

    backend: BackendName
    precision: Precision
    """As it was asked for."""
    computes: ComputedPrecision
    """What matrix products are really computed in: on a CPU without the instructions it is not always `precision`.

    An image has the same bits alone and in any batch where this is fp32 or int8, and in bf16 by OpenVINO.
    """
    device: str
    model: str
    weights: str
    """SHA-256 of the weights, hexadecimal."""
    layout: str
    """Which checkpoint format was met."""
    license: str | None
    config: MAEConfig
    preprocessing: Preprocessing
    lanes: int
    threads_per_lane: int
    preferred_batch: int
    mixes: bool = False
    """Whether images of a batch may differ in how many patches are visible; see `Engine`."""
    versions: dict[str, str]
    head: HeadConfig | None = None
    """Of the classification head, if there is one."""
    whitening: tuple[Pooled, ...] = ()
    """The pooled vectors that can be whitened."""
    parity: Parity | None = None
    quantisation: Quantisation | None = None
    """Of an engine in int8."""
    auto: MeasuredPrecision | None = None
    """Where the precision was left to us, and OpenVINO serves."""
    entry: str | None = None
    """Its name in the engine cache; none for torch, which compiles nothing."""
    fallback: str | None = None
    """Why this is not the backend that would have been preferred."""

    @property
    def model_id(self) -> str:
        """Name and weights in one word: what tells two vector spaces apart."""
        return f"{self.model}@{self.weights[:12]}"


class Engine(Protocol):
    """A compiled masked autoencoder. A lane is used by one thread at a time; different lanes run at once.

    Where `info.mixes`, K is that of the image with most visible patches, and for others the last positions are -1
    (`model.masking.PAD`): what `patches` holds there is ignored, and so are the tokens that come of it.
    """

    info: EngineInfo
    heads: Heads
    """What the host does with pooled vectors."""
    lanes: int
    """How many batches may run at once."""
    preferred_batch: int
    """How many images one lane likes best."""

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """Visible patches uint8 [B, K, P] at int32 [B, K] -> float32 [B, 2, D]: cls, mean of the patch tokens."""

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """Visible patches uint8 [B, K, P] at int32 [B, K] -> float32 [B, K, D]."""

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """All patches uint8 [B, N, P], visible int32 [B, K] -> pixels uint8 [B, N, P], squared error float32 [B, N]."""


def gather_visible(patches: Bytes, visible_indices: Indices) -> Bytes:
    """Patches uint8 [B, N, P] at int32 [B, K] -> uint8 [B, K, P]."""
    return patches[np.arange(len(patches))[:, None], visible_indices]
