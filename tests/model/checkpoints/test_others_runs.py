"""Checkpoints of other people's runs: each loads, and computes what the formula says for the same weights.

The formula (tests/support/vit_formula.py) shares no code with the model. The refusals are sentences that lead on.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path, PosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.checkpoints.torch_files import read_torch_file
from model.config import MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder, patchify
from tests.support.vit_formula import decode, encode

State = dict[str, Tensor]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
KEPT = torch.tensor([[0, 5, 9, 15], [2, 3, 8, 11]])


def random_weights(**sizes: Any) -> State:
    """A state dict of 32 x 32 pixels in patches of 8 x 8, all random but for its fixed positions."""
    generator = torch.Generator().manual_seed(0)
    config = MAEConfig(**{"image_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3} | sizes)
    return {
        name: tensor if "pos_embed" in name else torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in MaskedAutoencoder(config).state_dict().items()
    }


def require_formula(loaded: Checkpoint, state: State, heads: int, decoder_heads: int | None = None) -> None:
    """Asserts that tokens and predictions are those of the formula for `state`, which is under upstream's names."""
    model, patches = loaded.build(), patchify(IMAGES.permute(0, 2, 3, 1), 8)
    latent = model.forward_encoder(patches, torch.arange(16).expand(2, -1))
    torch.testing.assert_close(latent, encode(state, IMAGES, heads), atol=1e-4, rtol=0)
    assert loaded.config.has_decoder == (decoder_heads is not None)
    if decoder_heads is not None:
        expected = decode(state, encode(state, IMAGES, heads, KEPT), decoder_heads, KEPT)
        torch.testing.assert_close(model(patches, KEPT)[1], expected, atol=1e-4, rtol=0)


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noted(checkpoint: Checkpoint, words: str) -> bool:
    return any(words in note for note in checkpoint.notes)


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


CONTAINERS = ("state_dict", "model_state_dict", "model_state", "module", "net", "network", "teacher", "model_ema")


class TestContainersAndPrefixes:
    @pytest.mark.parametrize("name", CONTAINERS)
    def test_a_state_dict_is_found_and_the_place_is_named(self, tmp_path: Path, weights: State, name: str) -> None:
        loaded = load(torch_file(tmp_path / "bird.pth", {"epoch": 1, name: weights, "optimizer": {"step": 3}}))
        require_formula(loaded, weights, 3, 4)
        assert f"its tensors were found under {name!r}" in loaded.notes

    @pytest.mark.parametrize(
        ("taken", "left"), [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("model", "ema")]
    )
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_weights_beside_it_are_left_out_and_the_note_says_how_to_take_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: State, taken: str, left: str, prefix: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        averaged = {name: tensor if "pos_embed" in name else tensor * 0.5 for name, tensor in weights.items()}
        optimizer = {"state": {0: {"exp_avg": torch.ones(1)}}}
        torch_file(Path("run.pth"), {left: prefixed(prefix, averaged), "optimizer": optimizer, taken: weights})
        loaded = load(Path("run.pth"))
        require_formula(loaded, weights, heads=3, decoder_heads=4)
        (note,) = [note for note in loaded.notes if "left out" in note]
        assert note.startswith(f"its weights under '{taken}' were taken, and those under '{left}' left out; ")
        exec(note.partition("where the file was made: ")[2], {"torch": torch})
        other = load(Path("weights.pth"))
        require_formula(other, averaged, heads=3, decoder_heads=4)
        assert not noted(other, "left out")

    def test_a_container_that_holds_itself_has_an_end(self, tmp_path: Path) -> None:
        content: dict[str, object] = {"epoch": 1}
        content["model"] = content
        with pytest.raises(WeightsError, match="holds no state dict"):
            load(torch_file(tmp_path / "bird.pth", content))

    def test_one_inside_another(self, tmp_path: Path, weights: State) -> None:
        loaded = load(torch_file(tmp_path / "bird.pth", {"model": {"state_dict": weights, "step": 3}}))
        require_formula(loaded, weights, 3, 4)

    @pytest.mark.parametrize(
        "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "model.mae.", "encoder."]
    )
    def test_a_common_prefix_is_dropped_and_named(self, tmp_path: Path, weights: State, prefix: str) -> None:
        loaded = load(torch_file(tmp_path / "bird.ckpt", {"state_dict": prefixed(prefix, weights), "epoch": 1}))
        require_formula(loaded, weights, 3, 4)
        assert f"dropped from the beginning of its names: {prefix!r}" in loaded.notes

    @pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_wrappers_of_single_blocks_are_dropped_and_named(
        self, tmp_path: Path, weights: State, wrapper: str, prefix: str
    ) -> None:
        wrapped = {name.replace("blocks.0.", f"blocks.0.{wrapper}"): tensor for name, tensor in weights.items()}
        loaded = load(torch_file(tmp_path / "wrapped.pth", {"model": prefixed(prefix, wrapped)}))
        require_formula(loaded, weights, heads=3, decoder_heads=4)
        assert noted(loaded, f"dropped from inside its names: '{wrapper}'")

    def test_in_a_safetensors_file_too(self, tmp_path: Path, encoder: State) -> None:
        save_file(prefixed("encoder.", encoder), tmp_path / "bird.safetensors")
        require_formula(load(tmp_path / "bird.safetensors"), encoder, 3)

    def test_other_modules_beside_the_encoder_are_left_out_and_named(self, tmp_path: Path, encoder: State) -> None:
        beside = {"projector.0.weight": torch.ones(2, 2), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
        loaded = load(torch_file(tmp_path / "bird.ckpt", {"state_dict": prefixed("model.", encoder) | beside}))
        require_formula(loaded, encoder, 3)
        assert "left out, as parts of no masked autoencoder: projector.0.weight and 1 more" in loaded.notes

    def test_of_two_encoders_none_is_chosen(self, tmp_path: Path, encoder: State) -> None:
        both = prefixed("student.", encoder) | prefixed("ema.", encoder)
        message = r"holds several encoders, whose names begin with 'ema\.' and 'student\.': save one of them alone"
        with pytest.raises(WeightsError, match=message):
            load(torch_file(tmp_path / "bird.pth", {"model": both}))

    def test_lightlys_modules(self, tmp_path: Path, encoder: State, weights: State) -> None:
        decoder = {f"decoder.{name}": weights[name] for name in weights.keys() - encoder.keys()}
        state = prefixed("backbone.vit.", encoder) | decoder | {"backbone.mask_token": torch.ones(1, 1, 192)}
        loaded = load(torch_file(tmp_path / "bird.ckpt", {"state_dict": state}))
        require_formula(loaded, weights, 3, 4)
        assert "left out, as parts of no masked autoencoder: backbone.mask_token" in loaded.notes

    def test_solo_learns_modules(self, tmp_path: Path, encoder: State, weights: State) -> None:
        decoder = {f"decoder.{name}": weights[name] for name in weights.keys() - encoder.keys()}
        state = prefixed("backbone.", encoder) | decoder | {"classifier.bias": torch.ones(10)}
        content = {"state_dict": state, "hyper_parameters": {"method_kwargs": {"norm_pix_loss": True}}}
        loaded = load(torch_file(tmp_path / "bird.ckpt", content))
        require_formula(loaded, weights, 3, 4)
        assert loaded.config.norm_pix_loss


def in_mmpretrain(name: str) -> str:
    """mmpretrain's name for one of upstream's."""
    if name.startswith(("decoder", "mask_token")):
        module = "neck."
    else:
        module, name = "backbone.", name.replace("blocks.", "layers.")
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        name = f"ln1.{name[5:]}" if name.startswith("norm.") else name
    for ours, theirs in ((".norm", ".ln"), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1.")):
        name = name.replace(ours, theirs)
    return module + name


class TestMmpretrain:
    def test_with_its_decoder(self, tmp_path: Path, weights: State) -> None:
        state = {in_mmpretrain(name): tensor for name, tensor in weights.items()}
        assert "backbone.layers.1.ffn.layers.0.0.weight" in state and "neck.decoder_blocks.0.ln1.bias" in state
        path = torch_file(tmp_path / "mae.pth", {"meta": {}, "state_dict": state})
        loaded = load(path)
        require_formula(loaded, weights, 3, 4)
        assert (loaded.layout, loaded.config.norm_pix_loss) == ("mmpretrain", True)
        assert noted(loaded, "normalised pixels, as mmpretrain's recipes train it")
        assert not load(path, norm_pix_loss=False).config.norm_pix_loss

    def test_the_encoder_alone(self, tmp_path: Path, encoder: State) -> None:
        state = {in_mmpretrain(name).removeprefix("backbone."): tensor for name, tensor in encoder.items()}
        loaded = load(torch_file(tmp_path / "mae.pth", state))
        require_formula(loaded, encoder, 3)
        assert not noted(loaded, "normalised")


class TestIncompleteDecoders:
    def test_a_mask_token_without_a_decoder_is_left_out(self, tmp_path: Path, encoder: State, weights: State) -> None:
        state = encoder | {"mask_token": weights["mask_token"]}
        loaded = load(torch_file(tmp_path / "bird.pth", {"model": state}))
        require_formula(loaded, encoder, 3)
        assert "left out, as parts of a decoder that it does not hold: mask_token" in loaded.notes

    def test_fixed_positions_are_computed(self, tmp_path: Path, weights: State) -> None:
        state = {name: tensor for name, tensor in weights.items() if name != "decoder_pos_embed"}
        loaded = load(torch_file(tmp_path / "bird.pth", {"model": state}))
        require_formula(loaded, weights, 3, 4)
        assert noted(loaded, "holds no decoder_pos_embed: the fixed sine-cosine positions were computed")

    def test_but_not_beside_learned_ones(self, tmp_path: Path, weights: State) -> None:
        state = {name: tensor for name, tensor in weights.items() if name != "decoder_pos_embed"}
        state["pos_embed"] = torch.ones(1, 17, 192)
        with pytest.raises(WeightsError, match="lacks decoder_pos_embed, which a masked autoencoder of its size has"):
            load(torch_file(tmp_path / "bird.pth", state))


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


class TestOtherNetworks:
    @pytest.mark.parametrize(
        ("tensors", "sentence"),
        [
            (
                {"patch_embed.proj.weight": (96, 3, 7, 7), "blocks.2.proj.weight": (192, 96)},
                "is a Hiera (it holds blocks.2.proj.weight): mae-serve serves ViTs and residual networks of its own",
            ),
            (
                {"stages.0.0.grn.gamma": (1, 1, 1, 40), "downsample_layers.0.0.weight": (40, 3, 4, 4)},
                "is a ConvNeXt V2 (it holds stages.0.0.grn.gamma): mae-serve serves ViTs and residual networks of its "
                "own",
            ),
            (
                {"patch_embed.proj.weight": (192, 10, 8, 8), "pos_embed": (1, 17, 192)},
                "takes images of 10 channels: mae-serve serves models of 3 channels, RGB",
            ),
            (
                {"encoder.patch_embed.proj.weight": (192, 6, 1, 8, 8), "encoder.pos_embed": (1, 17, 192)},
                "takes videos or image series: mae-serve serves models of single images",
            ),
        ],
        ids=["Hiera", "ConvNeXt V2", "bands", "series"],
    )
    def test_files(self, tmp_path: Path, tensors: dict[str, tuple[int, ...]], sentence: str) -> None:
        path = torch_file(tmp_path / "m.pth", {"model_state": {name: torch.ones(s) for name, s in tensors.items()}})
        with pytest.raises(WeightsError) as error:
            load(path)
        assert str(error.value) == f"{path} {sentence}"

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"architecture": "hiera_base_224", "num_classes": 0}, "is a Hiera (hiera_base_224): mae-serve serves "),
            ({"architecture": "convnextv2_base"}, "is a ConvNeXt V2 (convnextv2_base): mae-serve serves "),
            ({"model_type": "hiera"}, "is a Hiera (hiera): mae-serve serves "),
        ],
    )
    def test_folders(self, tmp_path: Path, settings: dict[str, object], sentence: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
        save_file({"head.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError) as error:
            load(tmp_path)
        assert str(error.value).startswith(f"{tmp_path} {sentence}")


def test_assumed_statistics_are_a_note(tmp_path: Path, encoder: State) -> None:
    assert noted(load(torch_file(tmp_path / "bird.pth", encoder)), "ImageNet's mean and deviation")
    save_file(encoder, tmp_path / "bird.safetensors")
    assert noted(load(tmp_path / "bird.safetensors"), "PREPROCESS, or mae convert --preprocess, replaces any of it")
