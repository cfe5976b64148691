"""What a training script keeps beside the tensors of a file that `torch.save` wrote."""

import argparse
from collections.abc import Callable
from pathlib import Path, PosixPath, PureWindowsPath

import numpy as np
import pytest
import torch

from model.checkpoints.checkpoint import load
from model.checkpoints.errors import WeightsError
from model.checkpoints.torch_files import read_torch_file
from model.config import MAEConfig
from model.nn.vit import MaskedAutoencoder
from tests.support.foreign_checkpoints import State, require_formula, torch_file


class Stranger:
    """A type that no loader knows."""


class TestBesideTheTensors:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize(
        "arguments",
        [
            argparse.Namespace(output_dir=PosixPath("a/b"), log_dir=PureWindowsPath("c"), norm_pix_loss=True),
            {"norm_pix_loss": True},
            {"model": {"norm_pix_loss": True}},
            argparse.Namespace(norm_pix_loss=np.bool_(True), lr=np.float64(1e-3), seen=np.arange(3), seed=np.int32(7)),
        ],
        ids=["paths", "a dict", "a nested dict", "numpy"],
    )
    def test_arguments_of_any_form_are_read(
        self, tmp_path: Path, weights: State, arguments: object, zipped: bool
    ) -> None:
        content = {"model": weights, "args": arguments, "best_acc": np.float64(0.8)}
        torch.save(content, tmp_path / "bird.pth", _use_new_zipfile_serialization=zipped)
        loaded = load(tmp_path / "bird.pth")
        assert loaded.config.norm_pix_loss
        require_formula(loaded, weights, 3, 4)

    def test_numpys_numbers_keep_their_values(self, tmp_path: Path, weights: State) -> None:
        numbers = {
            "a": np.float64(0.8),
            "b": np.int32(-7),
            "c": np.float32(1.5),
            "d": np.uint8(200),
            "e": np.bool_(False),
        }
        path = torch_file(tmp_path / "bird.pth", {"model": weights, "args": argparse.Namespace(**numbers)})
        assert read_torch_file(path, path).arguments == {"a": 0.8, "b": -7, "c": 1.5, "d": 200, "e": False}

    @pytest.mark.parametrize("name", ["hyper_parameters", "hparams", "config", "cfg", "opt"])
    def test_under_other_names_too(self, tmp_path: Path, weights: State, name: str) -> None:
        path = torch_file(tmp_path / "bird.ckpt", {"state_dict": weights, name: {"norm_pix_loss": True}})
        assert load(path).config.norm_pix_loss

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (lambda weights: {"model": weights, "metric": Stranger()}, f"{__name__}.Stranger"),
            (lambda weights: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ],
        ids=["an object", "a module"],
    )
    def test_a_type_that_is_refused_is_named_with_how_to_save_again(
        self, tmp_path: Path, weights: State, zipped: bool, content: Callable[[State], object], kind: str
    ) -> None:
        torch.save(content(weights), tmp_path / "bird.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError) as error:
            load(tmp_path / "bird.pth")
        assert str(error.value) == (
            f"{tmp_path / 'bird.pth'} is refused by PyTorch's safe loader: it holds a {kind}, and to read that could "
            "run code; where the file was made, save the weights alone: "
            "torch.save({'model': model.state_dict()}, 'weights.pth')"
        )

    def test_what_the_message_says_to_save_loads(self, tmp_path: Path, config: MAEConfig) -> None:
        model = MaskedAutoencoder(config)
        torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
        assert load(tmp_path / "weights.pth").config.has_decoder

    def test_a_paths_stand_in_touches_no_disk(self, tmp_path: Path, weights: State) -> None:
        path = torch_file(tmp_path / "bird.pth", {"model": weights, "args": argparse.Namespace(log=tmp_path)})
        log = read_torch_file(path, path).arguments["log"]
        assert str(log) == str(tmp_path) and not hasattr(log, "exists")
