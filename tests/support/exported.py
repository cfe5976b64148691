"""Models to export in all their kinds, and what this project computes of them, for comparisons with other programs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import Head, Heads, Whitening
from model.checkpoints.memory_bank import MemoryBank
from model.checkpoints.native import HeadConfig, Pooled
from model.config import MAEConfig, Preprocessing
from model.images.open_image import open_image
from model.images.preprocess import patches_of
from model.nn import build_model
from model.nn.serving import EncoderGraph
from model.nn.vit import patchify

CHELSEA = Path(__file__).parents[1] / "data" / "chelsea.jpg"
CLASSES = ("crow", "jay", "magpie", "rook", "raven")
SIZES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 60, "depth": 2, "num_heads": 3}
SIZES |= {"decoder_embed_dim": 28, "decoder_depth": 1, "decoder_num_heads": 4}
# Both perceptrons have an odd number of neurons, which in floating point is a hair above the ratio times the width.
SIZES |= {"mlp_ratio": 123 / 60, "decoder_mlp_ratio": 61 / 28}
RESNET: dict[str, Any] = {"family": "resnet", "image_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2}
RESNET |= {"stages": ((16, 1), (24, 1)), "decoder_embed_dim": 16, "decoder_depth": 1}
KINDS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "learned positions": {"positions": "learned"},
    "no biases of queries": {"qkv_bias": False},
    "normalised pixels": {"norm_pix_loss": True},
    "encoder": {"decoder_depth": 0},
    "larger": {"image_size": 48, "patch_size": 16, "embed_dim": 192, "mlp_ratio": 4.0},
}
"""Changes to SIZES that every format can hold."""
PREPROCESSING = Preprocessing(crop_fraction=0.9, filter="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def drawn(
    head: Pooled | None = None,
    others: bool = False,
    preprocessing: Preprocessing = PREPROCESSING,
    **changes: Any,
) -> Checkpoint:
    """A model whose weights are drawn, fixed positions apart: no weight is zero or one.

    Args:
        head: the pooled vector that its classification head reads; None for no head.
        others: whether it has a whitening and a memory bank.
        preprocessing: how its images are prepared.
        changes: to SIZES, or all sizes if there is a `family`.
    """
    config = MAEConfig(name="bird", **(changes if "family" in changes else SIZES | changes))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        name: x if config.positions == "sincos" and "pos_embed" in name else draw(*x.shape) * 0.1 + ("norm" in name)
        for name, x in build_model(config).state_dict().items()
    }
    width = config.embed_dim
    heads = Heads()
    if head is not None:
        linear = Head(HeadConfig(pool=head, classes=CLASSES), draw(5, width).numpy(), draw(5).numpy())
        heads = replace(heads, head=linear)
    if others:
        whitening = {pool: Whitening(draw(width).numpy(), draw(width, width - 1).numpy()) for pool in ("cls", "mean")}
        scores = draw(4).abs().sort().values.numpy()
        bank = MemoryBank(draw(7, width).numpy(), scores, config.image_size)
        heads = replace(heads, whitening=whitening, memory_bank=bank)
    return Checkpoint(config, preprocessing, "mae-serve", tensors, "CC BY 4.0", heads)


def squares_of(checkpoint: Checkpoint) -> Tensor:
    """Three squares of drawn pixels, uint8 [3, S, S, 3]."""
    side, generator = checkpoint.config.image_size, torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8, generator=generator)


def standardise(checkpoint: Checkpoint, squares: Tensor) -> Tensor:
    """Squares uint8 [B, S, S, 3] -> what other programs take, float32 [B, 3, S, S]."""
    p = checkpoint.preprocessing
    return ((squares / 255 - torch.tensor(p.mean)) / torch.tensor(p.std)).permute(0, 3, 1, 2)


def pooled_of(checkpoint: Checkpoint, squares: Tensor) -> Tensor:
    """What this project computes: cls and mean of whole images, float32 [B, 2, D]."""
    graph = EncoderGraph(checkpoint.build(), checkpoint.preprocessing)
    patches = patchify(squares, checkpoint.config.patch_size)
    pooled: Tensor = graph(patches, torch.arange(patches.shape[1]).expand(len(patches), -1))[0]
    return pooled


def logits_of(checkpoint: Checkpoint, squares: Tensor) -> np.ndarray:
    """The logits of the head, float32 [B, C]."""
    head = checkpoint.heads.head
    assert head is not None
    vectors = pooled_of(checkpoint, squares)[:, ("cls", "mean").index(head.config.pool)].numpy()
    return vectors @ head.weight.T + head.bias


def chelsea_png() -> bytes:
    """The photograph, lossless: of a JPEG this project decodes no more pixels than it needs.

    It lies on its side, and EXIF tells so, as many cameras write their photographs.
    """
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(CHELSEA).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    return file.getvalue()


def chelsea_square(checkpoint: Checkpoint) -> Tensor:
    """The photograph of `run_card` as the model's square, uint8 [1, S, S, 3], as this project prepares it."""
    c = checkpoint.config
    patches = patches_of(open_image(chelsea_png()), c, checkpoint.preprocessing)
    grid, p = c.grid, c.patch_size
    square = patches.reshape(grid, grid, p, p, 3).swapaxes(1, 2).reshape(1, c.image_size, c.image_size, 3)
    return torch.from_numpy(square.copy())


def difference(theirs: Any, ours: Any) -> float:
    """The largest difference of two arrays, relative to the largest number of `ours`."""
    theirs, ours = np.asarray(theirs, dtype=np.float64), np.asarray(ours, dtype=np.float64)
    assert theirs.shape == ours.shape
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def run_card(folder: Path) -> dict[str, Any]:
    """Runs the code of a folder's card as its reader would, inside the folder; its variables.

    The current folder must be `folder`.
    """
    (folder / "photograph.png").write_bytes(chelsea_png())
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    variables: dict[str, Any] = {}
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # the code turns gradients off
        exec(code[1].replace("photograph.jpg", "photograph.png"), variables)
    return variables
