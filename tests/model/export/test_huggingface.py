"""Exported folders of Hugging Face's transformers: it loads them whole, and computes what this project computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.heads_file import read_heads
from model.checkpoints.locate import locate
from model.config import Preprocessing
from model.export.contents import ExportError
from model.export.folder import export
from model.nn.losses import masked_loss
from model.nn.vit import patchify
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


def opened(kind: str, folder: Path, unexpected: str | None = None, **arguments: Any) -> Any:
    """The model as transformers loads it, in eval mode, without a key too few or too many.

    `unexpected` is the beginning of keys that the class has no use for.
    """
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **arguments)
    left = {key for key in report["unexpected_keys"] if not unexpected or not key.startswith(unexpected)}
    assert (report["missing_keys"], left, report["mismatched_keys"]) == (set(), set(), set())
    return model.eval()


@torch.no_grad()
def pooled_by_transformers(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """cls and mean of whole images, [B, 2, D], by a ViTMAEModel that sees all patches."""
    tokens = model(pixels).last_hidden_state
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


def noise_of(visible: torch.Tensor, count: int) -> torch.Tensor:
    """The noise by which ViTMAE keeps the patches `visible`, int [B, K], in this order: the smallest are kept."""
    noise = torch.ones(len(visible), count)
    return noise.scatter(1, visible, torch.linspace(0, 0.5, visible.shape[1]).expand_as(visible))


def sizes_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config, without what means nothing: the name, and the sizes of a decoder that is not there."""
    sizes = checkpoint.config.model_dump(exclude={"name"})
    unused = () if checkpoint.config.has_decoder else ("decoder_embed_dim", "decoder_num_heads", "decoder_mlp_ratio")
    return {name: size for name, size in sizes.items() if name not in unused}


def without_decoder(checkpoint: Checkpoint) -> Checkpoint:
    config = checkpoint.config.model_copy(update={"decoder_depth": 0, "norm_pix_loss": False})
    encoder = {name: x for name, x in checkpoint.tensors.items() if not name.startswith(("decoder", "mask_token"))}
    return replace(checkpoint, config=config, tensors=encoder)


def identical(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two models have the same sizes, preprocessing, tensors and heads, bit by bit."""
    ours, theirs = one.heads.arrays(), other.heads.arrays()
    return (
        sizes_of(one) == sizes_of(other)
        and one.preprocessing == other.preprocessing
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        and ours.keys() == theirs.keys()
        and all(np.array_equal(ours[name], theirs[name]) for name in ours)
        and (one.heads.head and one.heads.head.config) == (other.heads.head and other.heads.head.config)
    )


def test_the_golden_numbers(probe: Path, golden: Any, tmp_path: Path) -> None:
    checkpoint = load(probe)
    export(checkpoint, "huggingface", tmp_path / "out")
    pixels = standardise(checkpoint, torch.from_numpy(golden["images"][:2]))
    encoder = opened("ViTMAEModel", tmp_path / "out", "decoder.", mask_ratio=0.0)
    pooled = pooled_by_transformers(encoder, pixels)
    for index, pool in enumerate(("cls", "mean")):
        assert np.abs(pooled[:, index].numpy() - golden[f"embed_{pool}"][:2]).max() < 1e-4
    autoencoder = opened("ViTMAEForPreTraining", tmp_path / "out")
    visible = torch.from_numpy(np.stack([np.flatnonzero(mask == 0) for mask in golden["mask"][:2]]))
    with torch.no_grad():
        output = autoencoder(pixels, noise=noise_of(visible, 196))
    assert output.loss.item() == pytest.approx(golden["loss"][:2].mean(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_the_same(kind: str, tmp_path: Path) -> None:
    checkpoint = drawn(**KINDS[kind])
    contents = export(checkpoint, "huggingface", tmp_path / "out")
    assert len(contents.notes) == 1 and "half a pixel off the centre" in contents.notes[0]
    squares = squares_of(checkpoint)
    pixels = standardise(checkpoint, squares)
    encoder = opened("ViTMAEModel", tmp_path / "out", "decoder.", mask_ratio=0.0)
    assert difference(pooled_by_transformers(encoder, pixels), pooled_of(checkpoint, squares)) < 1e-5
    if not checkpoint.config.has_decoder:
        return
    autoencoder = opened("ViTMAEForPreTraining", tmp_path / "out")
    n = checkpoint.config.num_patches
    visible = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i))[: n // 4] for i in range(3)])
    with torch.no_grad():
        theirs = autoencoder(pixels, noise=noise_of(visible, n))
        patches = patchify(pixels.permute(0, 2, 3, 1), checkpoint.config.patch_size)
        loss, pred, mask = checkpoint.build()(patches, visible)
    assert torch.equal(theirs.mask, mask)
    assert difference(theirs.logits, pred) < 1e-5
    assert theirs.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert loss == masked_loss(pred, patches, mask, "mse", checkpoint.config.norm_pix_loss)


@pytest.mark.parametrize("head", [None, "cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_again_has_the_same_bits(kind: str, head: Any, tmp_path: Path) -> None:
    checkpoint = drawn(head, others=True, **KINDS[kind])
    export(checkpoint, "huggingface", tmp_path / "out")
    again = load(tmp_path / "out")
    assert identical(again, without_decoder(checkpoint) if head == "cls" else checkpoint)
    assert (again.layout, again.notes, again.license) == ("huggingface", (), "cc-by-4.0")
    served = read_heads(tmp_path / "out")
    assert (served.memory_bank is not None, set(served.whitening)) == (True, {"cls", "mean"})


def test_heads_of_weights_that_were_trained_further_are_left_out(tmp_path: Path) -> None:
    export(drawn(others=True), "huggingface", tmp_path / "out")
    digest = locate(str(tmp_path / "out"), None).digest
    weights = tmp_path / "out" / "model.safetensors"
    save_file({name: x + 1e-3 for name, x in load_file(weights).items()}, weights, {"format": "pt"})
    again = load(tmp_path / "out")
    assert again.heads.arrays() == {} and read_heads(tmp_path / "out").arrays() == {}
    assert "left out: heads.safetensors, which was made for other weights than model.safetensors" in again.notes
    (tmp_path / "out" / "heads.safetensors").unlink()
    assert load(tmp_path / "out").notes == again.notes[:-1]
    assert locate(str(tmp_path / "out"), None).digest != digest


def test_the_heads_are_part_of_the_digest(tmp_path: Path) -> None:
    """Or else two whitenings of one model would share the name of their vector space."""
    export(drawn(others=True), "huggingface", tmp_path / "out")
    digest = locate(str(tmp_path / "out"), None).digest
    (tmp_path / "out" / "heads.safetensors").unlink()
    assert locate(str(tmp_path / "out"), None).digest != digest


def test_a_classifier(tmp_path: Path) -> None:
    checkpoint = drawn("cls")
    contents = export(checkpoint, "huggingface", tmp_path / "out")
    assert contents.notes[0] == (
        "The decoder is left out, since no class of transformers has both it and a head (--no-head)."
    )
    model = opened("ViTForImageClassification", tmp_path / "out")
    squares = squares_of(checkpoint)
    with torch.no_grad():
        logits = model(standardise(checkpoint, squares)).logits
    assert difference(logits, logits_of(checkpoint, squares)) < 1e-5
    assert tuple(model.config.id2label[number] for number in range(5)) == CLASSES
    assert not (tmp_path / "out" / "heads.safetensors").exists()


def test_a_head_of_the_mean_lies_beside_the_model(tmp_path: Path) -> None:
    checkpoint = drawn("mean")
    contents = export(checkpoint, "huggingface", tmp_path / "out")
    assert contents.notes[0] == "transformers has no heads that read the mean, so the head is in heads.safetensors."
    opened("ViTMAEForPreTraining", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "heads.safetensors")
    encoder = opened("ViTMAEModel", tmp_path / "out", "decoder.", mask_ratio=0.0)
    squares = squares_of(checkpoint)
    mean = pooled_by_transformers(encoder, standardise(checkpoint, squares))[:, 1]
    logits = mean @ stored["head.weight"].T + stored["head.bias"]
    assert difference(logits, logits_of(checkpoint, squares)) < 1e-5


@pytest.mark.parametrize("resize", ["short", "squash"])
def test_images_are_prepared_alike(resize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels, where the square lies a whole number of pixels off the edges, as here."""
    preprocessing = Preprocessing(resize=resize, crop_fraction=32 / 36 if resize == "short" else 1.0)
    checkpoint = drawn(preprocessing=preprocessing)
    contents = export(checkpoint, "huggingface", tmp_path / "out")
    assert len(contents.notes) == (resize == "short")
    monkeypatch.chdir(tmp_path / "out")
    theirs = run_card(tmp_path / "out")
    ours = standardise(checkpoint, chelsea_square(checkpoint))
    step = 1 / 255 / min(preprocessing.std)
    assert (theirs["inputs"]["pixel_values"] - ours).abs().max() < 0.01 * step
    pooled = torch.stack([theirs["cls"], theirs["mean"]], dim=1)
    assert difference(pooled, pooled_of(checkpoint, chelsea_square(checkpoint))) < 1e-5
    assert theirs["reconstruction"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_the_code_of_other_cards_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squash = Preprocessing(resize="squash")
    checkpoint = (
        drawn("cls", preprocessing=squash) if kind == "classifier" else drawn(preprocessing=squash, decoder_depth=0)
    )
    export(checkpoint, "huggingface", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    theirs = run_card(tmp_path / "out")
    square = chelsea_square(checkpoint)
    if kind == "encoder":
        assert difference(theirs["mean"], pooled_of(checkpoint, square)[:, 1]) < 1e-5
    else:
        expected = torch.from_numpy(logits_of(checkpoint, square)).softmax(dim=-1)
        assert difference(theirs["probabilities"], expected) < 1e-4


def test_half_precision(tmp_path: Path) -> None:
    checkpoint = drawn(others=True)
    export(checkpoint, "huggingface", tmp_path / "out", half=True)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {torch.float16}
    again = load(tmp_path / "out")
    halved = {name: x.half().float() for name, x in checkpoint.tensors.items()}
    assert identical(again, replace(checkpoint, tensors=halved))
    assert opened("ViTMAEForPreTraining", tmp_path / "out").dtype == torch.float16


@pytest.mark.parametrize(("head", "result"), [(None, "mean"), ("cls", "probabilities")])
def test_the_code_of_the_card_runs_on_16_bits(
    head: Any, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = drawn(head, preprocessing=Preprocessing(resize="squash"))
    export(checkpoint, "huggingface", tmp_path / "out", half=True)
    monkeypatch.chdir(tmp_path / "out")
    theirs = run_card(tmp_path / "out")[result]
    square = chelsea_square(checkpoint)
    expected = pooled_of(checkpoint, square)[:, 1]
    if head:
        expected = torch.from_numpy(logits_of(checkpoint, square)).softmax(dim=-1)
    assert (theirs.dtype, difference(theirs, expected) < 0.01) == (torch.float32, True)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (RESNET, "bird is a residual network that transformers does not have: --to onnx can hold it"),
        (
            {"final_norm": "pooled", "decoder_depth": 0},
            "bird norms the mean of its tokens (fc_norm), which no ViT of transformers does: "
            "--to timm and --to onnx can hold it",
        ),
    ],
)
def test_what_it_cannot_hold_is_refused(checkpoint: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refused:
        export(drawn(**checkpoint), "huggingface", tmp_path / "out")
    assert str(refused.value) == message
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_the_card_names_a_licence_that_the_hub_does_not_know(tmp_path: Path) -> None:
    licence = 'photographs: "CC BY 4.0" (birds) and MIT'
    export(replace(drawn(), license=licence), "huggingface", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: other\nlicense_name: \"photographs: 'CC BY 4.0' (birds) and MIT\"\n" in card
    assert f"The weights are under: {licence}." in card
    export(replace(drawn(), license="Apache-2.0"), "huggingface", tmp_path / "two")
    assert load(tmp_path / "two").license == "apache-2.0"
    export(replace(drawn(), license="none named by its card (of 2021)"), "huggingface", tmp_path / "three")
    assert load(tmp_path / "three").license == "none named by its card (of 2021)"
