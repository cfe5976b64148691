"""`mae compile`."""

import json
from pathlib import Path

import pytest
import torch

from model.nn import build_model
from tests.service.cli.conftest import Mae
from tests.support.engines import NARROW


def test_a_server_finds_what_was_built_ahead(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    # Quickly converted, and of usual widths, so that a file without a config can be read.
    widths = {"embed_dim": 192, "num_heads": 3, "decoder_embed_dim": 128, "decoder_num_heads": 4}
    tensors = build_model(NARROW.model_copy(update=widths)).state_dict()
    torch.save({"model": tensors}, tmp_path / "narrow.pth")
    monkeypatch.setenv("MAE_WEIGHTS", str(tmp_path / "narrow.pth"))
    monkeypatch.setenv("MAE_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MAE_IMAGE_SIZE", "24")  # a smaller grid than the weights are of: parity is asked of it too
    first = mae("compile", "--json", "--max-batch", "3")
    description = json.loads(first.out)
    assert first.code == 0
    assert (description["made"], description["backend"], description["precision"], description["max_batch"]) == (
        "now",
        "openvino",
        "fp32",
        3,
    )
    assert description["centred_cosine"] >= 0.999999
    assert description["psnr_db"] >= 60
    assert "converting narrow for OpenVINO" in first.err, "the steps are shown while the engine is built"
    assert "measuring the seconds of batches" in first.err
    entry = Path(description["entry"])
    assert entry.parent == tmp_path / "cache"
    assert description["files"] == {path.name: path.stat().st_size for path in entry.iterdir()}
    assert {"encoder.bin", "decoder.bin"} <= description["files"].keys()

    again = mae("compile")
    rows = dict(line.split(maxsplit=1) for line in again.out.splitlines() if not line.startswith(" "))
    assert rows["made"].strip() == "before"
    assert rows["encoder.bin"].strip().endswith(" MB")
    assert "measuring the seconds of batches" in again.err, "now for any batch"
    assert "measuring the seconds of batches" not in mae("compile").err
    engine = json.loads(mae("info", "--json").out)["engine"]
    assert engine["batch_curves"]["shapes"]["embed whole"]["lanes"]["1"] > 0
    assert (engine["entry"], engine["layout"]) == (entry.name, "facebookresearch")
    assert engine["config"]["image_size"] == 24
    assert description["auto"] is None, "fp32 was asked for"

    by_itself = mae("compile", "--precision", "auto")
    rows = dict(line.split(maxsplit=1) for line in by_itself.out.splitlines() if not line.startswith(" "))
    assert rows["made"].strip() == "before"
    assert rows["auto"].startswith(("images per core-second: fp32 ", "there is nothing to compare it with"))
    assert rows["precision"].strip() in ("fp32", "bf16")
    engine = json.loads(mae("info", "--json", "--precision", "auto").out)["engine"]
    assert engine["precision"] == engine["auto"]["precision"] == rows["precision"].strip()
    assert list((tmp_path / "cache").glob("openvino-*")) == [entry]


def test_torch_has_nothing_to_build(mae: Mae) -> None:
    """It is said before the weights are read."""
    result = mae("compile", "--backend", "torch", "--weights", "missing.safetensors")
    expected = "mae: torch runs the model as it is: there is nothing to build ahead\n"
    assert (result.code, result.out, result.err) == (2, "", expected)


def test_tensorrt_by_name_needs_a_gpu(mae: Mae) -> None:
    result = mae("compile", "--backend", "tensorrt")
    assert (result.code, result.out) == (2, "")
    assert result.err == "mae: BACKEND=tensorrt, but there is no NVIDIA device\n"
