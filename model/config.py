"""The sizes of a masked autoencoder, and how its images are prepared."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Loss = Literal["mse", "cosine"]
Family = Literal["vit", "resnet"]
Positive = Annotated[int, Field(gt=0)]
Colour = tuple[float, float, float]


def split_heads(value: object) -> object:
    """The numbers in a text such as `12` or `12,16`; anything else as it is.

    Raises:
        ValueError: the text holds something other than one or two positive numbers.
    """
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r" *[1-9][0-9]*( *, *[1-9][0-9]*)? *", value):
        raise ValueError("expected the encoder's number of attention heads, such as 12, or the decoder's too: 12,16")
    return tuple(map(int, value.split(",")))


AttentionHeads = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=2), BeforeValidator(split_heads)]
"""The numbers of attention heads that the operator states: of the encoder, or of encoder and decoder."""
STEM_STRIDE = 4
"""Stride of the first layer of a residual encoder, in pixels."""


class MAEConfig(BaseModel):
    """Sizes of an encoder and its decoder, under upstream's names (facebookresearch/mae, models_mae.py).

    `decoder_depth` 0 means that there is no decoder: such a model embeds but does not reconstruct. `name` is stored
    with the weights, and users see it.

    A `resnet` has `stages`, each with a width and a number of blocks, and no heads. Each stage but the first halves the
    resolution. Its `depth` counts the blocks of all stages, its `embed_dim` is the width of the last stage, and its
    `decoder_depth` counts the blocks before the upsampling. The ratios of perceptrons, `qkv_bias` and `positions` mean
    nothing to it.

    A `final_norm` of "pooled" is that of classifiers that upstream and timm fine-tune with average pooling: the tokens
    are not normed, but their mean is. Such a model has no decoder, and its cls token stands for nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "mae"
    family: Family = "vit"
    image_size: Positive = 224
    patch_size: Positive = 16
    embed_dim: Positive
    depth: Positive
    num_heads: int = Field(default=0, ge=0)
    stages: tuple[tuple[Positive, Positive], ...] = ()
    mlp_ratio: float = Field(default=4.0, gt=0)
    decoder_embed_dim: Positive = 512
    decoder_depth: int = Field(default=8, ge=0)
    decoder_num_heads: Positive = 16
    decoder_mlp_ratio: float = Field(default=4.0, gt=0)
    qkv_bias: bool = True
    layer_norm_eps: float = Field(default=1e-6, gt=0)
    positions: Literal["sincos", "learned"] = "sincos"
    final_norm: Literal["tokens", "pooled"] = Field(
        default="tokens", description="Whether the encoder's last norm is over its tokens, or over their mean (fc_norm)"
    )
    norm_pix_loss: bool = Field(default=False, description="The decoder predicts pixels normalised within each patch")

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.final_norm == "pooled" and (self.has_decoder or self.family != "vit"):
            raise ValueError("a norm after the pooling is for vits without a decoder")
        if self.family == "vit":
            self._require_heads()
        else:
            self._require_stages()
        return self

    def _require_heads(self) -> None:
        if self.stages:
            raise ValueError("a vit has no stages")
        attentions = [(self.embed_dim, self.num_heads, "encoder")]
        if self.has_decoder:
            attentions.append((self.decoder_embed_dim, self.decoder_num_heads, "decoder"))
        for width, heads, part in attentions:
            if heads < 1 or width % heads:
                raise ValueError(f"the {part}'s width {width} is not a multiple of its {heads} heads")
            if self.positions == "sincos" and width % 4:
                raise ValueError(f"sine-cosine positions need the {part}'s width ({width}) to be a multiple of 4")

    def _require_stages(self) -> None:
        if not self.stages:
            raise ValueError("a resnet needs stages: the width and the number of blocks of each")
        if self.num_heads:
            raise ValueError("a resnet has no attention: num_heads means nothing to it")
        halvings = len(self.stages) - 1
        stride, blocks, width = STEM_STRIDE << halvings, sum(count for _, count in self.stages), self.stages[-1][0]
        if self.patch_size != stride:
            raise ValueError(f"patch_size {self.patch_size} is not the stride of {halvings + 1} stages, {stride}")
        if self.embed_dim != width:
            raise ValueError(f"embed_dim {self.embed_dim} is not the width of the last stage, {width}")
        if self.depth != blocks:
            raise ValueError(f"depth {self.depth} is not the number of blocks in all stages, {blocks}")
        if self.has_decoder and self.decoder_embed_dim % 2**halvings:
            raise ValueError(
                f"the decoder's width {self.decoder_embed_dim} cannot be halved in each of its {halvings} upsamplings"
            )

    @property
    def has_decoder(self) -> bool:
        """Whether the model can reconstruct."""
        return self.decoder_depth > 0

    @property
    def has_cls(self) -> bool:
        """Whether a vector of a cls token stands for the image; otherwise the mean takes its place."""
        return self.family == "vit" and self.final_norm == "tokens"

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """N, the number of patches per image."""
        return self.grid**2

    @property
    def patch_dim(self) -> int:
        """P = p * p * 3, the numbers per patch."""
        return self.patch_size**2 * 3


class Preprocessing(BaseModel):
    """How an image becomes the model's square. It is part of the model, since other pixels give other vectors.

    `resize="short"` scales the short side to `image_size / crop_fraction` and takes the centre square;
    `"squash"` scales both sides to `image_size` whatever the shape (Hugging Face's ViTImageProcessor does).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Literal["short", "squash"] = "short"
    crop_fraction: float = Field(default=1.0, gt=0, le=1)
    filter: Filter = "bicubic"
    mean: Colour = (0.485, 0.456, 0.406)
    std: Annotated[Colour, Field(description="per channel, of pixels in 0..1")] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _require_finite(self) -> Self:
        if not all(map(math.isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise ValueError("mean must be finite and std positive")
        return self

    def resized_short_side(self, image_size: int) -> int:
        """Length in pixels of the short side before the centre square of `image_size` is cropped, rounded as by timm.

        The millionth undoes the rounding of fractions such as 224 / 400, which would otherwise give 399.
        """
        return math.floor(image_size / self.crop_fraction + 1e-6)


PRESETS: dict[str, MAEConfig] = {
    # name, patch size, encoder (width, depth, heads), decoder (width, depth, heads); base to huge as published
    config.name: config
    for config in (
        MAEConfig(
            name=name,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            decoder_embed_dim=decoder[0],
            decoder_depth=decoder[1],
            decoder_num_heads=decoder[2],
        )
        for name, patch, (width, depth, heads), decoder in (
            ("mae_tiny", 16, (192, 12, 3), (128, 2, 4)),
            ("mae_small", 16, (384, 12, 6), (256, 4, 8)),
            ("mae_base", 16, (768, 12, 12), (512, 8, 16)),
            ("mae_large", 16, (1024, 24, 16), (512, 8, 16)),
            ("mae_huge", 14, (1280, 32, 16), (512, 8, 16)),
        )
    )
}
PRESETS["resnet_tiny"] = MAEConfig(
    name="resnet_tiny",
    family="resnet",
    patch_size=32,
    embed_dim=320,
    depth=7,
    stages=((32, 1), (64, 2), (128, 2), (320, 2)),
    decoder_embed_dim=128,
    decoder_depth=2,
)
