"""Exported folders of timm: it loads them whole, and computes what this project computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints.checkpoint import load
from model.checkpoints.heads_file import read_heads
from model.config import Preprocessing
from model.export.contents import ExportError
from model.export.folder import export
from tests.support.exported import (
    CLASSES,
    KINDS,
    RESNET,
    chelsea_square,
    difference,
    drawn,
    logits_of,
    pooled_of,
    run_card,
    squares_of,
    standardise,
)

POOLED_NORM = {"final_norm": "pooled", "decoder_depth": 0}


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """timm, which imports torchvision.

    torchvision's operators need CUDA's libraries in wheels for GPUs, and here torch may have none. To import its Python
    code, two operators must have names.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    import timm

    yield timm


@torch.no_grad()
def outputs(model: Any, pixels: torch.Tensor) -> np.ndarray:
    return model.eval()(pixels).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_the_same(kind: str, tmp_path: Path, timm: Any) -> None:
    checkpoint = drawn(**KINDS[kind])
    contents = export(checkpoint, "timm", tmp_path / "out")
    assert ("The decoder is left out, since timm has encoders alone." in contents.notes) == (
        checkpoint.config.has_decoder
    )
    squares = squares_of(checkpoint)
    pixels, pooled = standardise(checkpoint, squares), pooled_of(checkpoint, squares)
    mean = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    cls = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, global_pool="token")
    assert difference(outputs(cls, pixels), pooled[:, 0]) < 1e-5
    assert difference(outputs(mean, pixels), pooled[:, 1]) < 1e-5


def test_a_checkpoint_for_a_model_that_was_made_by_name(probe: Path, golden: Any, tmp_path: Path, timm: Any) -> None:
    """timm's own presets have the sizes of ours."""
    checkpoint = load(probe)
    contents = export(checkpoint, "timm", tmp_path / "out")
    assert contents.title.startswith("a vit_tiny_patch16_224 of timm")
    weights = tmp_path / "out" / "model.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, checkpoint_path=weights)
    pixels = standardise(checkpoint, torch.from_numpy(golden["images"][:2]))
    assert np.abs(outputs(model, pixels) - golden["embed_cls"][:2]).max() < 1e-4


@pytest.mark.parametrize(("head", "changes"), [("cls", {}), ("mean", {}), ("mean", POOLED_NORM)])
def test_classifiers(head: Any, changes: dict[str, Any], tmp_path: Path, timm: Any) -> None:
    checkpoint = drawn(head, **changes)
    export(checkpoint, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    squares = squares_of(checkpoint)
    logits = outputs(model, standardise(checkpoint, squares))
    assert difference(logits, logits_of(checkpoint, squares)) < 1e-5
    assert tuple(model.pretrained_cfg["label_names"]) == CLASSES


@pytest.mark.parametrize(("head", "changes"), [(None, {}), ("cls", {}), ("mean", {}), ("mean", POOLED_NORM)])
@pytest.mark.parametrize("resize", ["short", "squash"])
def test_what_is_read_again_has_the_same_bits(resize: Any, head: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = drawn(
        head, preprocessing=Preprocessing(resize=resize, crop_fraction=0.9 if resize == "short" else 1), **changes
    )
    export(
        replace(checkpoint, heads=replace(drawn(others=True).heads, head=checkpoint.heads.head)), "timm", tmp_path / "o"
    )
    again = load(tmp_path / "o")
    kept = [name for name in checkpoint.tensors if not name.startswith(("decoder", "mask_token"))]
    assert sorted(again.tensors) == sorted(kept)
    assert all(torch.equal(again.tensors[name], checkpoint.tensors[name]) for name in kept)
    assert (again.preprocessing, again.license) == (checkpoint.preprocessing, "CC BY 4.0")
    assert (again.heads.head is None) == (head is None)
    if head is not None:
        assert again.heads.head.config == checkpoint.heads.head.config  # type: ignore[union-attr]
    assert (again.config.num_heads, again.config.final_norm) == (3, checkpoint.config.final_norm)
    assert set(read_heads(tmp_path / "o").whitening) == set(again.heads.whitening) == {"cls", "mean"}


@pytest.mark.parametrize("resize", ["short", "squash"])
@pytest.mark.parametrize("head", [None, "mean"])
def test_the_code_of_the_card(
    resize: Any, head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timm: Any
) -> None:
    checkpoint = drawn(head, preprocessing=Preprocessing(resize=resize, crop_fraction=0.9 if resize == "short" else 1))
    export(checkpoint, "timm", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    theirs = run_card(tmp_path / "out")
    square = chelsea_square(checkpoint)
    step = 1 / 255 / min(checkpoint.preprocessing.std)
    assert (theirs["images"] - standardise(checkpoint, square)).abs().max() < 0.01 * step
    if head is None:
        assert difference(theirs["vectors"], pooled_of(checkpoint, square)[:, 1]) < 1e-5
    else:
        expected = torch.from_numpy(logits_of(checkpoint, square)).softmax(dim=-1)
        assert difference(theirs["probabilities"], expected) < 1e-4


def test_another_constant_of_the_norms_is_told(tmp_path: Path, timm: Any) -> None:
    checkpoint = drawn(layer_norm_eps=1e-12, decoder_depth=0)
    contents = export(checkpoint, "timm", tmp_path / "out")
    assert contents.notes == ("timm adds 1e-06 to variances where this model adds 1e-12.",)
    squares = squares_of(checkpoint)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    theirs = outputs(model, standardise(checkpoint, squares))
    assert difference(theirs, pooled_of(checkpoint, squares)[:, 1]) < 1e-3


def test_a_residual_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refused:
        export(drawn(**RESNET), "timm", tmp_path / "out")
    assert str(refused.value) == "bird is a residual network that timm does not have: --to onnx can hold it"
