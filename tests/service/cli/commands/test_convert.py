"""`mae convert`."""

import resource
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints.checkpoint import load, save
from model.config import MAEConfig
from model.nn.vit import MaskedAutoencoder
from tests.service.cli.conftest import Mae
from tests.support.exported import drawn


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights in `upstream.pth`, a small model as facebookresearch's training script writes it."""
    monkeypatch.chdir(tmp_path)
    config = MAEConfig(
        image_size=32,
        embed_dim=192,
        depth=2,
        num_heads=3,
        decoder_embed_dim=128,
        decoder_depth=1,
        decoder_num_heads=4,
    )
    torch.manual_seed(0)
    state = MaskedAutoencoder(config).state_dict()
    torch.save({"model": state, "args": Namespace(norm_pix_loss=True), "epoch": 3}, "upstream.pth")
    return state


def test_any_layout_becomes_ours(mae: Mae, upstream: dict[str, torch.Tensor]) -> None:
    result = mae("convert", "upstream.pth", "-o", "ours.safetensors", "--name", "mine")
    assert result.code == 0
    heads, statistics = result.err.splitlines()
    assert heads.startswith(
        "mae: upstream.pth: the number of attention heads is guessed from the width: 3 in the encoder"
    )
    assert statistics.startswith("mae: upstream.pth: it does not tell how its images were prepared, so ImageNet's mean")
    first, second = result.out.splitlines()
    assert first.startswith(
        "upstream.pth: layout facebookresearch, 32 x 32 pixels in patches of 16 x 16, encoder of 2 blocks 192 wide"
    )
    assert "decoder of 1 blocks 128 wide with 4 heads that predicts normalised pixels" in first
    assert second.startswith("ours.safetensors: mine, 32 bits per number, ")
    ours = load(Path("ours.safetensors"))
    assert (ours.config.name, ours.config.norm_pix_loss, ours.layout) == ("mine", True, "mae-serve")
    assert ours.tensors.keys() == upstream.keys()
    assert all(torch.equal(ours.tensors[name], upstream[name]) for name in upstream)


def test_what_the_checkpoint_does_not_say_can_be_said(mae: Mae, upstream: dict[str, torch.Tensor]) -> None:
    result = mae("convert", "upstream.pth", "-o", "ours.safetensors", "--no-norm-pix-loss", "--half")
    assert "that predicts pixels" in result.out and "16 bits per number" in result.out
    assert not load(Path("ours.safetensors")).config.norm_pix_loss
    stored = load_file("ours.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(torch.equal(stored[name], upstream[name].half()) for name in upstream)


def test_heads_and_preprocessing_can_be_said(mae: Mae, upstream: dict[str, torch.Tensor]) -> None:
    mean = '{"mean": [0.418, 0.421, 0.399]}'
    result = mae("convert", "upstream.pth", "-o", "ours.safetensors", "--heads", "12,16", "--preprocess", mean)
    assert result.code == 0 and result.err == ""
    assert "192 wide with 12 heads" in result.out and "128 wide with 16 heads" in result.out
    ours = load(Path("ours.safetensors"))
    assert (ours.config.num_heads, ours.config.decoder_num_heads) == (12, 16)
    assert ours.preprocessing.mean == (0.418, 0.421, 0.399)
    assert ours.notes == (), "the file tells it from now on"


def test_an_encoder_alone_is_said_to_be_one(mae: Mae, upstream: dict[str, torch.Tensor]) -> None:
    encoder = {name: tensor for name, tensor in upstream.items() if not name.startswith(("decoder", "mask_token"))}
    torch.save({"model": encoder}, "encoder.pth")
    result = mae("convert", "encoder.pth", "-o", "ours.safetensors")
    assert result.code == 0 and ", no decoder, " in result.out
    assert not load(Path("ours.safetensors")).config.has_decoder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["upstream.pth", "-o", "ours.pth"], "ours.pth should end in .safetensors"),
        (["upstream.pth", "-o", "nowhere/ours.safetensors"], "there is no folder nowhere"),
        (["upstream.pth", "-o", "ours.safetensors", "--name", ""], "--name is empty"),
        (["upstream.pth", "-o", "ours.safetensors", "--name", "a\r\nX: 1"], "has a control character"),
        (["upstream.pth", "-o", "ours.safetensors", "--model", "mae_giant"], "there is no preset 'mae_giant'"),
        (["nowhere.pth", "-o", "ours.safetensors"], "/nowhere.pth does not exist"),
        (["upstream.pth", "-o", "ours.safetensors", "--heads", "12,"], "heads: expected the encoder's number of "),
        (["upstream.pth", "-o", "ours.safetensors", "--heads", "5"], "192 is not a multiple of its 5 heads"),
        (["upstream.pth", "-o", "ours.safetensors", "--preprocess", '{"std": [0, 1, 1]}'], "std positive"),
        (["text.pth", "-o", "ours.safetensors"], "is neither a safetensors file nor a PyTorch checkpoint"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    mae: Mae, upstream: dict[str, torch.Tensor], arguments: list[str], sentence: str
) -> None:
    Path("text.pth").write_text("no weights")
    result = mae("convert", *arguments)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("mae: ") and sentence in result.err and result.err.count("\n") == 1
    assert not Path("ours.safetensors").exists()


def test_a_folder_for_another_program(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("bird.safetensors"), drawn("cls", others=True))
    result = mae("convert", "bird.safetensors", "-o", "out", "--to", "huggingface", "--name", "jay")
    assert (result.code, result.err) == (0, "")
    _, first, *notes, last = result.out.splitlines()
    assert first.startswith("out: jay as a ViTForImageClassification of Hugging Face's transformers, 0.")
    assert notes[0].startswith("The decoder is left out, ") and "half a pixel" in notes[1]
    assert last == (
        "out/heads.safetensors holds what the format has no place for: whitening.cls.centre, whitening.cls.matrix, "
        "whitening.mean.centre, whitening.mean.matrix, memory_bank.tokens, memory_bank.scores"
    )
    files = {"README.md", "config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in Path("out").iterdir()} == files
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in Path("out").iterdir()), "others can read them"
    assert load(Path("out")).heads.head is not None


@pytest.mark.parametrize("to", ["huggingface", "timm"])
def test_what_was_exported_becomes_ours_again(
    to: str, mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = drawn("mean", others=True)
    save(Path("bird.safetensors"), checkpoint)
    assert mae("convert", "bird.safetensors", "-o", "out", "--to", to).code == 0
    assert mae("convert", "out", "-o", "again.safetensors", "--name", "bird").code == 0
    again, before = load_file("again.safetensors"), load_file("bird.safetensors")
    decoder = {name for name in before if name.startswith(("decoder", "mask_token"))}
    assert again.keys() == before.keys() - (decoder if to == "timm" else set())
    assert all(torch.equal(again[name], before[name]) for name in again)
    assert load(Path("again.safetensors")).preprocessing == checkpoint.preprocessing


def test_the_head_can_be_left_out(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("bird.safetensors"), drawn("cls"))
    assert (
        "ViTMAEForPreTraining"
        in mae("convert", "bird.safetensors", "-o", "out", "--to", "huggingface", "--no-head").out
    )
    assert load(Path("out")).config.has_decoder and load(Path("out")).heads.head is None
    assert mae("convert", "bird.safetensors", "-o", "headless.safetensors", "--no-head").code == 0
    assert load(Path("headless.safetensors")).heads.head is None


def test_what_cannot_be_exported(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = drawn()
    checkpoint.tensors["blocks.0.mlp.fc1.weight"][0, 0] = 1e5
    save(Path("bird.safetensors"), checkpoint)
    Path("full").mkdir()
    Path("full", "photograph.jpg").touch()
    for arguments, message in {
        ("full", "timm"): f"{tmp_path / 'full'} exists already: name a new folder or an empty one",
        (
            "bird.safetensors",
            "timm",
        ): f"{tmp_path / 'bird.safetensors'} exists already: name a new folder or an empty one",
        ("out", "tensorflow"): "--to is 'tensorflow': expected mae-serve, huggingface, timm, onnx",
        ("there/out", "timm"): "there is no folder there",
        (
            "out",
            "timm",
            "--half",
        ): "blocks.0.mlp.fc1.weight has numbers that are too large for 16 bits: leave --half out",
    }.items():
        output, to, *others = arguments
        result = mae("convert", "bird.safetensors", "-o", output, "--to", to, *others)
        assert (result.code, result.err) == (2, f"mae: {message}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bird.safetensors", "full"], "nothing is left behind"


def test_a_folder_that_cannot_be_written_is_named_as_the_user_does(
    mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("bird.safetensors"), drawn())
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))  # as a full disk, it stops the writing half-way
        result = mae("convert", "bird.safetensors", "-o", "out", "--to", "huggingface")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (result.code, result.err) == (2, "mae: out: File too large\n")
    assert [path.name for path in tmp_path.iterdir()] == ["bird.safetensors"], "nothing is left behind"


def test_a_link_to_an_empty_folder_is_followed(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("bird.safetensors"), drawn())
    Path("disk").mkdir()
    Path("out").symlink_to("disk")
    assert mae("convert", "bird.safetensors", "-o", "out", "--to", "huggingface").code == 0
    assert Path("out").is_symlink() and Path("disk", "config.json").is_file()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_onnx_needs_its_packages(package: str, mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("bird.safetensors"), drawn())
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else ModuleType(name))
    result = mae("convert", "bird.safetensors", "-o", "out", "--to", "onnx")
    assert (result.code, result.err) == (
        2,
        f"mae: --to onnx needs the package {package}: pip install onnx onnxscript\n",
    )
