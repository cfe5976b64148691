"""All settings: each is an environment variable MAE_… and a flag of `mae serve`, and has a default that works."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.engines.cpu import available_cpus
from model.engines.settings import EngineSettings
from model.images.open_image import MAX_PIXELS
from service.api_keys import read_keys, require_keys, split_keys
from service.paths import KEYABLE, ROUTE, VERTEX_ROUTES, require_free

PREFIX = "MAE_"
# For every service whose name begins with "mae", Kubernetes puts variables into the environment that are no settings.
# Most are recognised by their names (MAE_SERVICE_HOST=10.0.0.1, MAE_PORT_8000_TCP_ADDR=10.0.0.1), the others by their
# values (MAE_PORT=tcp://10.0.0.1:8000, MAE_WEB_PORT=tcp://…).
SERVICE_LINK = re.compile(r"MAE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*")
DEFAULT_PORT = 8000
PLATFORM_VARIABLES: dict[str, tuple[str, ...]] = {
    "port": ("AIP_HTTP_PORT", "PORT"),
    "health_route": ("AIP_HEALTH_ROUTE",),
    "predict_route": ("AIP_PREDICT_ROUTE",),
}
"""The variables by which platforms (Vertex AI; Knative and Cloud Run) give settings that are not set otherwise.

The first one that is set counts. docker/healthcheck.py has the same rule for the port."""
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@,*]+", re.IGNORECASE)


class InvalidSettings(ValueError):
    """A setting has a wrong value; the message names it."""


class Settings(EngineSettings, BaseSettings):
    """The settings of the engine (see `EngineSettings`) and those of the service."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        enable_decoding=False,  # validators parse values with structure, and their errors name the wrong part
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    host: str = "0.0.0.0"
    """Address to listen on; `::` takes IPv6 and IPv4."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    root_path: str | None = None
    """Path under which a proxy serves this service, such as `/mae`."""
    health_route: str | None = None
    """A further path that answers as `/readyz` does."""
    predict_route: str | None = None
    """Path that takes `{"instances": [{"b64": …}]}` and answers `{"predictions": […]}`, as Vertex AI asks."""
    cors_origins: tuple[str, ...] = ()
    """Comma-separated origins whose pages may read the answers, such as `https://app.example`; `*`: all."""
    served_name: str | None = None
    """Name of the model in answers, in place of the name that the weights have."""
    http_workers: int = Field(default=0, ge=0, le=256)
    """Processes that read, decode and answer requests, before the process of the engine; 0: one process does it all."""
    max_delay_ms: float = Field(default=0, ge=0, le=10_000)
    """How long a free lane waits for a batch to fill, counted from its oldest image."""
    queue_images: int = Field(default=512, gt=0)
    """Images that may wait, those being decoded included; further requests are answered 429."""
    max_inflight_mb: float = Field(default=256, gt=0)
    """Megabytes of request bodies held at once; a body without room is answered 429."""
    decode_threads: int = Field(default_factory=available_cpus, gt=0)
    """Threads that decode images and write PNGs; by default one per CPU."""
    max_body_mb: float = Field(default=32, gt=0)
    """Largest size of a request's body, in megabytes."""
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Largest number of pixels that an image is decoded to; a JPEG is decoded at a part of its size."""
    max_decode_mb: float = Field(default=1200, gt=0)
    """Megabytes of memory that all decodes hold together; images wait until there is room."""
    max_images: int = Field(default=64, gt=0)
    """Largest number of images in a request."""
    load_timeout_s: float = Field(default=1800, gt=0)
    """Longest running time of a step of loading the engine, in seconds; then the process ends with exit code 1."""
    request_timeout_s: float = Field(default=30, gt=0)
    """Seconds from the arrival of a request's headers until it is answered 504."""
    max_connections: int | None = Field(default=None, gt=0)
    """Most connections at once; by default 2000, or fewer where the limit on open files is lower."""
    header_timeout_s: float = Field(default=10, gt=0)
    """Seconds until the headers of a request must be complete; otherwise it is answered 408."""
    body_stall_s: float = Field(default=10, gt=0)
    """Longest pause within a request's body, in seconds; after it the request is answered 408."""
    drain_timeout_s: float = Field(default=30, ge=0)
    """Seconds that accepted requests get to finish after SIGTERM."""
    cache_mb: float = Field(default=0, ge=0)
    """Megabytes of results that are kept for images that are sent again, in all processes together; 0: none."""
    api_keys: tuple[str, ...] = Field(default=(), repr=False)
    """Comma-separated keys, one of which a request must bring; without any, every request may pass."""
    api_keys_file: Path | None = None
    """File with further keys, one per line, read at the start."""
    key_max_requests: int = Field(default=0, ge=0)
    """Inference requests of one key that may be in flight; further ones are answered 429; 0: no limit."""
    key_images_per_s: float = Field(default=0, ge=0)
    """Images per second of one key, with a burst of one second or MAX_IMAGES; more are answered 429; 0: no limit."""
    keyed_paths: tuple[str, ...] = ()
    """Comma-separated paths that need a key too, such as `/metrics,/docs`."""
    drift_sample: float = Field(default=0, ge=0, le=1)
    """Share of the images, 0 to 1, on which drift is measured while no image waits."""
    index: Path | None = None
    """Folder of an index that `mae index` has made, for `/search`."""
    index_paths: bool = False
    """Whether `/search` answers the paths of files as the index holds them; otherwise only the files' names."""
    log_format: Literal["text", "json"] = "text"
    """How the log is written."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return split_keys(value) if isinstance(value, str) and value else value

    @field_validator("api_keys")
    @classmethod
    def _require_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return require_keys(value) if value else value

    @field_validator("keyed_paths", mode="before")
    @classmethod
    def _split_keyed_paths(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        paths = tuple(path.strip().rstrip("/") or "/" for path in value.split(",") if path.strip())
        if unknown := [path for path in paths if path not in KEYABLE]:
            raise ValueError(f"{unknown[0]} is none of {' '.join(sorted(KEYABLE))}")
        return paths

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = tuple(origin.strip() for origin in value.split(",") if origin.strip())
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is no origin: write only scheme, host and port, as in https://app.example")
        return origins

    @field_validator("root_path")
    @classmethod
    def _normalise_root_path(cls, value: str | None) -> str | None:
        value = (value or "").rstrip("/")
        if not value:
            return None
        if not ROUTE.fullmatch(value):
            raise ValueError("a path begins with / and has no blank, %, ? or #")
        require_free(value)
        return value

    @field_validator("health_route", "predict_route")
    @classmethod
    def _require_route(cls, value: str | None) -> str | None:
        if value is not None and not ROUTE.fullmatch(value):
            raise ValueError("a route begins with /, does not end with it, and has no blank, %, ? or #")
        return value

    @field_validator("predict_route")
    @classmethod
    def _require_free_route(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(VERTEX_ROUTES):
            require_free(value)
        return value

    @field_validator("served_name")
    @classmethod
    def _require_name(cls, value: str | None) -> str | None:
        if value is not None and (value != value.strip() or not value.isprintable() or not value):
            raise ValueError("a name has visible characters, and no blanks at its ends")
        return value

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_link(cls, value: object) -> object:
        return DEFAULT_PORT if isinstance(value, str) and SERVICE_ADDRESS.fullmatch(value) else value

    @field_validator("http_workers")
    @classmethod
    def _require_linux(cls, value: int) -> int:
        if value and not hasattr(os, "memfd_create"):
            raise ValueError("workers share memory in a way that only Linux has")
        return value

    @model_validator(mode="after")
    def _read_key_file(self) -> Self:
        if self.api_keys_file is not None:
            try:
                keys = read_keys(self.api_keys_file)
            except ValueError as error:
                raise ValueError(f"API_KEYS_FILE: {error}") from None
            object.__setattr__(self, "api_keys", tuple(dict.fromkeys(self.api_keys + keys)))  # the only change, ever
        return self

    @model_validator(mode="after")
    def _require_keys_for_limits(self) -> Self:
        for name in ("key_max_requests", "key_images_per_s", "keyed_paths"):
            if getattr(self, name) and not self.api_keys:
                raise ValueError(f"{name.upper()} needs API_KEYS or API_KEYS_FILE")
        return self

    @model_validator(mode="after")
    def _require_room_for_one_body(self) -> Self:
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

    @property
    def max_decode_bytes(self) -> int:
        """MAX_DECODE_MB in bytes."""
        return int(self.max_decode_mb * 1e6)

    @property
    def cache_bytes(self) -> int:
        """CACHE_MB in bytes, in one of the processes that keep results: each HTTP worker has an equal part."""
        return int(self.cache_mb * 1e6) // max(1, self.http_workers)

    @property
    def engine(self) -> EngineSettings:
        """The settings that concern the engine. With MAX_DELAY_MS, auto makes no joined lane, which would never run."""
        engine = EngineSettings(**{name: getattr(self, name) for name in EngineSettings.model_fields})
        no_joined_lane = self.max_delay_ms > 0 and engine.joined_lane == "auto"
        return engine.model_copy(update={"joined_lane": "off"}) if no_joined_lane else engine


def load_settings(**flags: Any) -> Settings:
    """Reads settings from the environment, and from `flags`, which override it; None stands for a flag not used.

    `PLATFORM_VARIABLES` count where neither a flag nor a variable MAE_… gives the setting.

    Raises:
        InvalidSettings: a value is wrong, or a variable MAE_… is no setting.
    """
    known = set(Settings.model_fields)
    for variable, value in os.environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and name not in known and not _is_service_link(variable, value):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {PREFIX}{close[0].upper()}?" if close else ""
            raise InvalidSettings(f"{variable} is no setting{hint}")
    given = {name: value for name, value in flags.items() if value is not None}
    platform = _platform_variables(given)
    given |= {name: os.environ[variable] for name, variable in platform.items()}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise InvalidSettings("; ".join(_describe_error(one, platform) for one in error.errors())) from error


def _platform_variables(given: Mapping[str, object]) -> dict[str, str]:
    """The variables of a platform that count, by setting; those in `given` and those set by MAE_… need none."""
    variables = {}
    for name, platform in PLATFORM_VARIABLES.items():
        own = os.environ.get(PREFIX + name.upper(), "")
        if name in given or (own and not SERVICE_ADDRESS.fullmatch(own)):
            continue
        if variable := next((variable for variable in platform if os.environ.get(variable)), None):
            variables[name] = variable
    return variables


def _is_service_link(variable: str, value: str) -> bool:
    if variable.endswith("_PORT") and SERVICE_ADDRESS.fullmatch(value):
        return True
    return SERVICE_LINK.fullmatch(variable) is not None


def _describe_error(error: Any, platform: Mapping[str, str]) -> str:
    """The sentence for an error of pydantic, with the wrong value unless it is a key.

    It names the setting, or the variable of `platform` that has given it.
    """
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = platform.get(str(error["loc"][0]), str(error["loc"][0]).upper())
    value = "" if name == "API_KEYS" else f" (given: {error['input']!r})"
    return f"{name}: {str(error['msg']).removeprefix('Value error, ')}{value}"
