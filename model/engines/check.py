"""What is wrong with an engine's settings, as far as it can be told before anything is loaded."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from model.checkpoints.locate import HUB_PREFIX, locate
from model.config import MAEConfig, Preprocessing
from model.engines.backend import choose_backend
from model.engines.base import BackendChoice, EngineBuildError
from model.engines.settings import EngineSettings


def check_settings(settings: EngineSettings) -> None:
    """Checks that there are such weights, that this machine has the backend, and that the model can be like this.

    Weights on the hub are not fetched. The sizes of a foreign checkpoint are known only once it is loaded.

    Raises:
        WeightsError: there are no such weights.
        EngineBuildError: the backend cannot run here, or the model cannot have this image size or preprocessing.
    """
    require_precision(choose_backend(settings.backend), settings.precision)
    if (settings.weights or "").startswith(HUB_PREFIX):
        return
    config = locate(settings.weights, settings.model).config
    if config is not None and settings.image_size is not None:
        _check(MAEConfig, config, {"image_size": settings.image_size}, "IMAGE_SIZE")
    if settings.preprocess is not None:
        _check(Preprocessing, Preprocessing(), settings.preprocess, "PREPROCESS")


def require_precision(choice: BackendChoice, precision: str, calibrates: bool = False) -> None:
    """Checks that a backend has a precision, and can be calibrated for int8 if it should be.

    Raises:
        EngineBuildError: it has not, or it cannot.
    """
    if choice.backend != "openvino" and (precision == "int8" or calibrates):
        wanted = "PRECISION=int8" if precision == "int8" else "calibration for int8"
        raise EngineBuildError(
            f"{wanted} is for BACKEND=openvino; {choice.backend} on {choice.device} has fp32, bf16 and fp16"
        )


def _check(kind: type[BaseModel], model: BaseModel, changes: dict[str, object], setting: str) -> None:
    try:
        kind(**{**model.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([setting, *map(str, first["loc"])])
        sentence = first["msg"].removeprefix("Value error, ")
        raise EngineBuildError(f"the model cannot be served like this: {name}: {sentence}") from error
