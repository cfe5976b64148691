"""Every setting, once: environment variables MAE_…, or flags of `mae serve`. All have defaults that work."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.engines.backend import Backend
from model.engines.base import Precision
from model.engines.cpu import available_cpus
from model.engines.spec import EngineSpec

PREFIX = "MAE_"
# What Kubernetes puts into the environment for every service whose name begins with "mae": MAE_SERVICE_HOST=10.0.0.1,
# MAE_PORT_8000_TCP_ADDR=10.0.0.1, …, and MAE_PORT=tcp://10.0.0.1:8000 or MAE_WEB_PORT=tcp://…, told by their value.
SERVICE_LINK = re.compile(r"MAE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")
DEFAULT_PORT = 8000


class InvalidSettings(ValueError):
    """A setting that cannot be; the message names it."""


class Settings(BaseSettings):
    """What the operator can decide."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    http_workers: int = Field(default=0, ge=0, le=256)
    """Processes that read, decode and answer requests for the one that has the engine; 0: one process does it all."""
    model: str | None = None
    """Preset (mae_tiny … mae_huge, resnet_tiny): which packaged weights to serve, or what a foreign checkpoint is."""
    weights: str | None = None
    """Checkpoint file or folder, or hf:ORG/NAME; the packaged model if none."""
    norm_pix_loss: bool | None = None
    """Whether the decoder predicts pixels normalised within each patch, for a checkpoint that does not say."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square that the model sees, in pixels, a multiple of the patch; the model's own if none."""
    preprocess: Annotated[dict[str, Any] | None, NoDecode] = None
    """JSON that replaces parts of the model's preprocessing: resize, crop_fraction, filter, mean, std."""
    backend: Backend = "auto"
    """Engine: auto, tensorrt, openvino or torch."""
    precision: Precision | Literal["auto"] = "auto"
    """Arithmetic: fp32, bf16, fp16, int8 (OpenVINO, made by mae compile --calibrate), or auto: measured by OpenVINO."""
    lanes: int | None = Field(default=None, gt=0)
    """Batches that run at once; by default one a processor for openvino, two on a GPU."""
    max_batch: int | None = Field(default=None, gt=0, le=4096)
    """Most images in one batch; by default what the engine likes best, which is 64 on a GPU."""
    cuda_graphs: bool = False
    """Record the usual batches as CUDA graphs, and fill others up to the next power of two; GPUs only."""
    parity_cosine: float | None = Field(default=None, ge=-1, le=1)
    """Least centred cosine of embeddings against eager float32; 0.999999 in fp32, 0.99 (mean) in int8, else 0.999."""
    parity_psnr_db: float | None = Field(default=None, ge=0, le=99)
    """Least PSNR of reconstructions against eager float32; by default 60 dB in fp32, 30 in int8, else 40."""
    parity_loss: float | None = Field(default=None, ge=0)
    """Largest relative difference of the loss from eager float32; by default 0.001 in fp32, 0.05 in int8, else 0.02."""
    max_delay_ms: float = Field(default=0, ge=0, le=10_000)
    """How long a free lane waits for a batch to fill, counted from its oldest image."""
    queue_images: int = Field(default=512, gt=0)
    """Images that may wait, decoding included; more are answered 429."""
    max_inflight_mb: float = Field(default=256, gt=0)
    """Megabytes of request bodies held at once; more are answered 429 before they are read."""
    decode_threads: int = Field(default_factory=available_cpus, gt=0)
    """Threads that decode images and write PNGs; by default one a processor."""
    max_body_mb: float = Field(default=32, gt=0)
    """Megabytes of one request's body."""
    max_pixels: int = Field(default=50_000_000, gt=0)
    """Pixels of one image."""
    max_images: int = Field(default=64, gt=0)
    """Images of one request."""
    request_timeout_s: float = Field(default=30, gt=0)
    """Seconds from a request's first byte until it is answered 504."""
    drain_timeout_s: float = Field(default=30, ge=0)
    """Seconds that accepted requests get to finish after SIGTERM."""
    engine_cache: Path = Field(default_factory=lambda: _cache_home() / "mae-serve")
    """Folder for compiled engines."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(default=(), repr=False)
    """Comma-separated keys, one of which a request must bring; none means open."""
    log_format: Literal["text", "json"] = "text"
    """How the log is written."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(key.strip() for key in value.split(",") if key.strip()) if isinstance(value, str) else value

    @field_validator("preprocess", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        return DEFAULT_PORT if isinstance(value, str) and SERVICE_ADDRESS.fullmatch(value) else value

    @field_validator("http_workers")
    @classmethod
    def _can_share_memory(cls, value: int) -> int:
        if value and not hasattr(os, "memfd_create"):
            raise ValueError("only Linux has what workers share")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_body_mb > self.max_inflight_mb:
            raise ValueError(f"MAX_BODY_MB ({self.max_body_mb}) is more than MAX_INFLIGHT_MB ({self.max_inflight_mb})")
        return self

    @property
    def max_body_bytes(self) -> int:
        """MAX_BODY_MB in bytes."""
        return int(self.max_body_mb * 1e6)

    @property
    def max_inflight_bytes(self) -> int:
        """MAX_INFLIGHT_MB in bytes."""
        return int(self.max_inflight_mb * 1e6)

    def engine_spec(self) -> EngineSpec:
        """The part that concerns the engine."""
        return EngineSpec(
            cache=self.engine_cache,
            weights=self.weights,
            model=self.model,
            norm_pix_loss=self.norm_pix_loss,
            image_size=self.image_size,
            preprocess=self.preprocess,
            backend=self.backend,
            precision=self.precision,
            lanes=self.lanes,
            max_batch=self.max_batch,
            cuda_graphs=self.cuda_graphs,
            parity_cosine=self.parity_cosine,
            parity_psnr_db=self.parity_psnr_db,
            parity_loss=self.parity_loss,
        )


def load_settings(**given: Any) -> Settings:
    """Settings from the environment, and from `given` (flags), which win; None means not given.

    Raises:
        InvalidSettings: a value that cannot be, or a variable MAE_… that is no setting.
    """
    known = set(Settings.model_fields)
    for variable, value in os.environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in known and not _is_service_link(variable, value):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {PREFIX}{close[0].upper()}?" if close else ""
            raise InvalidSettings(f"{variable} is no setting{hint}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise InvalidSettings("; ".join(map(_sentence, error.errors()))) from error


def _is_service_link(variable: str, value: str) -> bool:
    if variable.endswith("_PORT") and SERVICE_ADDRESS.fullmatch(value):
        return True
    return SERVICE_LINK.fullmatch(variable) is not None


def _sentence(error: Any) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]).upper()
    shown = "" if name == "API_KEYS" else f" (given: {error['input']!r})"
    return f"{name}: {str(error['msg']).removeprefix('Value error, ')}{shown}"


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
