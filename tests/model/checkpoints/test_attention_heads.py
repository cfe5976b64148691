"""The numbers of attention heads: who tells them, what is guessed, and what the operator may correct."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.config import MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder
from tests.support.foreign_checkpoints import State, noted, prefixed, require_formula, torch_file


def random_weights(**sizes: Any) -> State:
    """A state dict of 32 x 32 pixels in patches of 8 x 8, all random but for its fixed positions."""
    generator = torch.Generator().manual_seed(0)
    config = MAEConfig(**{"image_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3} | sizes)
    return {
        name: tensor if "pos_embed" in name else torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in MaskedAutoencoder(config).state_dict().items()
    }


class TestAttentionHeads:
    def test_without_a_word_they_are_guessed_and_the_guess_is_named(self, tmp_path: Path, weights: State) -> None:
        loaded = load(torch_file(tmp_path / "bird.pth", weights))
        require_formula(loaded, weights, heads=3, decoder_heads=4)
        assert noted(loaded, "is guessed from the width: 3 in the encoder (192 wide), 4 in the decoder (128 wide);")
        assert noted(loaded, "HEADS (--heads)")

    def test_the_operator_states_them(self, tmp_path: Path) -> None:
        state = random_weights(decoder_embed_dim=256, decoder_depth=1)
        path = torch_file(tmp_path / "bird.pth", {"model": state})
        loaded = load(path, heads=(12, 16))
        require_formula(loaded, state, heads=12, decoder_heads=16)
        assert not noted(loaded, "guessed")
        alone = load(path, heads=(12,))
        require_formula(alone, state, heads=12, decoder_heads=8)
        assert noted(alone, "guessed from the width: 8 in the decoder (256 wide);")

    def test_an_unusual_width_asks_for_them_and_then_loads(self, tmp_path: Path) -> None:
        state = random_weights(decoder_embed_dim=96, decoder_depth=1, decoder_num_heads=3)
        path = torch_file(tmp_path / "lite.pth", {"model": state})
        with pytest.raises(WeightsError) as error:
            load(path)
        assert str(error.value) == (
            f"{path} does not tell the number of attention heads, and its decoder is of an unusual width, 96: "
            "say HEADS=12,16 (--heads 12,16), with the numbers that it was trained with"
        )
        require_formula(load(path, heads=(12, 3)), state, heads=12, decoder_heads=3)

    def test_so_does_an_unusual_encoder(self, tmp_path: Path) -> None:
        state = random_weights(embed_dim=256, num_heads=4, decoder_depth=0)
        path = torch_file(tmp_path / "own.pth", state)
        with pytest.raises(WeightsError, match=r"its encoder is of an unusual width, 256: say HEADS=12 \(--heads 12\)"):
            load(path)
        require_formula(load(path, heads=(8,)), state, heads=8)

    def test_a_number_that_does_not_divide_the_width_is_refused(self, tmp_path: Path, weights: State) -> None:
        path = torch_file(tmp_path / "bird.pth", weights)
        with pytest.raises(WeightsError, match="the encoder's width 192 is not a multiple of its 5 heads"):
            load(path, heads=(5,))

    def test_a_preset_gives_them(self, tmp_path: Path, probe: Path) -> None:
        state = dict(load(probe).tensors)
        loaded = load(torch_file(tmp_path / "bird.pth", state), model="mae_tiny")
        assert (loaded.config.num_heads, loaded.config.decoder_num_heads) == (3, 4)
        assert not noted(loaded, "guessed")

    @pytest.mark.parametrize(
        ("arguments", "heads", "guessed"),
        [
            ({"num_heads": 6, "decoder_num_heads": 2}, (6, 2), False),
            ({"num_heads": 6}, (6, 4), True),
            ({"num_heads": "6", "decoder_num_heads": "2"}, (6, 2), False),
            ({"num_heads": "\u0666"}, (3, 4), True),  # a 6 in Arabic-Indic digits
            ({"num_heads": "six"}, (3, 4), True),
            ({"model": "mae_vit_tiny_patch16"}, (3, 4), True),  # forks gave it 12 under this name
            ({"arch": "vit_tiny_patch8_32", "decoder_num_heads": 4}, (3, 4), False),
        ],
    )
    def test_arguments_of_the_training_are_believed(
        self, tmp_path: Path, weights: State, arguments: dict[str, object], heads: tuple[int, int], guessed: bool
    ) -> None:
        content = {"model": weights, "args": argparse.Namespace(**arguments)}
        loaded = load(torch_file(tmp_path / "bird.pth", content))
        require_formula(loaded, weights, *heads)
        assert noted(loaded, "guessed") == guessed

    def test_solo_learns_backbone_tells_them(self, tmp_path: Path, encoder: State) -> None:
        backbone = {"name": "vit_tiny", "kwargs": {"patch_size": 8, "img_size": 32, "num_heads": 12}}
        content = {"state_dict": prefixed("backbone.", encoder), "hyper_parameters": {"backbone": backbone}}
        loaded = load(torch_file(tmp_path / "solo.ckpt", content))
        require_formula(loaded, encoder, heads=12)
        assert not noted(loaded, "guessed")

    def test_upstreams_names_tell_them(self, tmp_path: Path) -> None:
        state = random_weights(embed_dim=768, depth=1, num_heads=12, decoder_depth=1)
        content = {"model": state, "args": argparse.Namespace(model="mae_vit_base_patch16")}
        loaded = load(torch_file(tmp_path / "bird.pth", content))
        require_formula(loaded, state, heads=12, decoder_heads=16)
        assert not noted(loaded, "guessed")

    @pytest.mark.parametrize("heads", [3, 12])
    def test_timms_model_args_are_believed(self, tmp_path: Path, encoder: State, heads: int) -> None:
        settings: dict[str, Any] = {"architecture": "vit_tiny_patch8_32", "model_args": {"num_heads": heads}}
        settings["pretrained_cfg"] = {"input_size": [3, 32, 32]}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        save_file(encoder, tmp_path / "model.safetensors")
        loaded = load(tmp_path)
        require_formula(loaded, encoder, heads=heads)
        assert loaded.notes == ()

    def test_an_argument_of_timm_that_leaves_no_trace_is_refused(self, tmp_path: Path, encoder: State) -> None:
        settings = {"architecture": "vit_tiny_patch8_32", "model_args": {"act_layer": "quick_gelu", "norm_layer": None}}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        save_file(encoder, tmp_path / "model.safetensors")
        message = (
            r"was made with act_layer='quick_gelu' \(model_args in its config.json\), which mae-serve does not know"
        )
        with pytest.raises(WeightsError, match=message):
            load(tmp_path)

    def test_a_file_of_ours_keeps_them_and_the_operator_may_correct_them(self, tmp_path: Path, weights: State) -> None:
        loaded = load(torch_file(tmp_path / "bird.pth", weights), heads=(12, 16))
        save(tmp_path / "ours.safetensors", loaded)
        again = load(tmp_path / "ours.safetensors")
        require_formula(again, weights, heads=12, decoder_heads=16)
        assert again.notes == ()
        corrected = load(tmp_path / "ours.safetensors", heads=(6,))
        require_formula(corrected, weights, heads=6, decoder_heads=16)
        assert corrected.notes == ("HEADS replaces the numbers of attention heads that it tells: 12 (num_heads)",)

    def test_a_residual_network_has_none(self, tmp_path: Path) -> None:
        from model.config import PRESETS
        from model.nn import build_model

        tensors = dict(build_model(PRESETS["resnet_tiny"]).state_dict())
        save(tmp_path / "r.safetensors", Checkpoint(PRESETS["resnet_tiny"], Preprocessing(), "mae-serve", tensors))
        with pytest.raises(WeightsError, match="is convolutional and has no attention heads"):
            load(tmp_path / "r.safetensors", heads=(4,))
