"""Checkpoints of other people's runs: each loads, and computes what the formula says for the same weights.

Tensors are found in containers, under prefixes and other programs' names. The refusals are sentences that lead on.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.checkpoint import load
from model.checkpoints.errors import WeightsError
from tests.support.foreign_checkpoints import State, in_mmpretrain, noted, prefixed, require_formula, torch_file

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
