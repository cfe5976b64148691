"""Foreign preprocessing as our `Preprocessing`: Hugging Face's preprocessor_config.json, timm's pretrained_cfg."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from model.checkpoints.errors import WeightsError
from model.config import Colour, Filter, Positive, Preprocessing

PIL_FILTERS: tuple[Filter, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
TIMM_ARGUMENTS = (
    "img_size patch_size in_chans num_classes global_pool embed_dim depth num_heads mlp_ratio qkv_bias qk_norm "
    "proj_bias init_values class_token no_embed_class reg_tokens pre_norm final_norm fc_norm dynamic_img_size "
    "dynamic_img_pad drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate weight_init"
)
"""Arguments of timm's VisionTransformer that show in the shapes of tensors, that only training uses, or that are read.
Others, such as `act_layer`, may change the numbers without a trace in the tensors."""


class Edges(BaseModel):
    """A size as transformers' image processors write it: both sides, or the short one."""

    height: Positive | None = None
    width: Positive | None = None
    shortest_edge: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return {"height": value, "width": value} if isinstance(value, int) else value


class HuggingFacePreprocessor(BaseModel):
    """preprocessor_config.json; omitted fields have the defaults of transformers' `ViTImageProcessor`."""

    do_resize: Literal[True] = True
    size: Edges = Field(default_factory=lambda: Edges(height=224, width=224))
    resample: int = Field(default=2, ge=0, lt=len(PIL_FILTERS))
    do_center_crop: bool | None = None
    crop_size: Edges | None = None
    do_rescale: Literal[True] = True
    rescale_factor: float = Field(default=1 / 255, gt=1 / 255 - 1e-6, lt=1 / 255 + 1e-6)
    do_normalize: bool = True
    image_mean: Colour = (0.5, 0.5, 0.5)
    image_std: Colour = (0.5, 0.5, 0.5)

    def to_preprocessing(self, image_size: int, path: Path) -> Preprocessing:
        """Translates the config to our names; `path` is its folder, for messages.

        Raises:
            WeightsError: the preprocessing does not end in the model's square of `image_size`.
        """
        square = Edges(height=image_size, width=image_size)
        resize: dict[str, Any]
        if self.size.shortest_edge and self.do_center_crop and self.crop_size == square:
            resize = {"resize": "short", "crop_fraction": image_size / self.size.shortest_edge}
        elif self.size == square and (not self.do_center_crop or self.crop_size in (None, square)):
            resize = {"resize": "squash"}
        else:
            raise WeightsError(
                f"{path} prepares images in a way that does not end in {image_size} x {image_size} pixels"
            )
        return Preprocessing(
            filter=PIL_FILTERS[self.resample],
            mean=self.image_mean if self.do_normalize else (0.0, 0.0, 0.0),
            std=self.image_std if self.do_normalize else (1.0, 1.0, 1.0),
            **resize,
        )


class TimmPreprocessing(BaseModel):
    """timm's description of the images that a model was trained with; omitted fields have timm's defaults."""

    input_size: tuple[Literal[3], int, int] = (3, 224, 224)
    interpolation: Filter = "bicubic"
    crop_pct: float = 0.875
    crop_mode: Literal["center", "squash"] = "center"
    mean: Colour = (0.485, 0.456, 0.406)
    std: Colour = (0.229, 0.224, 0.225)
    license: str | None = None
    label_names: Any = None

    def to_preprocessing(self, image_size: int, path: Path) -> Preprocessing:
        """Translates the config to our names; `path` is the model's folder, for messages.

        Raises:
            WeightsError: the config is for images of another size than the position table is, or both squashes and
                crops them.
        """
        if self.input_size[1:] != (image_size, image_size):
            raise WeightsError(
                f"{path} has the input_size {list(self.input_size)}: its positions expect {image_size} pixels"
            )
        if self.crop_mode == "squash" and self.crop_pct != 1:
            raise WeightsError(f"{path} squashes its images and crops them by {self.crop_pct}: expected one of the two")
        return Preprocessing(
            resize="short" if self.crop_mode == "center" else "squash",
            crop_fraction=self.crop_pct,
            filter=self.interpolation,
            mean=self.mean,
            std=self.std,
        )


class TimmConfig(BaseModel):
    """config.json of a model that timm has pushed to the hub."""

    architecture: str
    pretrained_cfg: TimmPreprocessing = Field(default_factory=TimmPreprocessing)
    model_args: dict[str, Any] = Field(default_factory=dict)
    global_pool: str | None = None
    label_names: Any = None

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, value: dict[str, Any]) -> dict[str, Any]:
        return value if "pretrained_cfg" in value else value | {"pretrained_cfg": value}  # flat before timm 0.9

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the model was made with; `arch` is the name that gives the others their defaults."""
        return {"arch": self.architecture, "global_pool": self.global_pool} | self.model_args

    @property
    def labels(self) -> Any:
        """Names of the classes: a list, or a mapping from their numbers."""
        return self.label_names or self.pretrained_cfg.label_names

    def require_known_arguments(self, path: Path) -> None:
        """Raises WeightsError if the model was made with an argument that may change what its tensors compute."""
        known = TIMM_ARGUMENTS.split()
        unknown = [name for name, value in self.model_args.items() if value is not None and name not in known]
        if unknown:
            raise WeightsError(
                f"{path} was made with {unknown[0]}={self.model_args[unknown[0]]!r} (model_args in its config.json), "
                "which mae-serve does not know"
            )
