import argparse
import errno
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import locate
from model.config import PRESETS, MAEConfig, Preprocessing
from model.nn.serving import EncoderGraph
from model.nn.vit import patchify, sincos_positions

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import ViTMAEForPreTraining

Save = Callable[..., "ViTMAEForPreTraining"]


@pytest.fixture
def bird(config: MAEConfig, weights: dict[str, Tensor]) -> Checkpoint:
    preprocessing = Preprocessing(crop_fraction=0.875, filter="lanczos", mean=(0.5, 0.5, 0.5))
    return Checkpoint(config, preprocessing, "mae-serve", weights, "CC0")


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class TestOurOwnFormat:
    def test_what_is_saved_comes_back(self, tmp_path: Path, bird: Checkpoint) -> None:
        save(tmp_path / "bird.safetensors", bird)
        loaded = load(tmp_path / "bird.safetensors")
        assert same(loaded.tensors, bird.tensors)
        assert (loaded.config, loaded.preprocessing) == (bird.config, bird.preprocessing)
        assert (loaded.layout, loaded.license) == ("mae-serve", "CC0")

    def test_half_is_half_the_size_and_loads_as_float32(self, tmp_path: Path, bird: Checkpoint) -> None:
        save(tmp_path / "whole", bird)
        save(tmp_path / "half", bird, half=True)
        assert (tmp_path / "half").stat().st_size < 0.51 * (tmp_path / "whole").stat().st_size
        loaded = load(tmp_path / "half")
        assert loaded.config == bird.config
        for name, tensor in loaded.tensors.items():
            assert torch.equal(tensor, bird.tensors[name].half().float())

    def test_a_weight_too_large_for_half_leaves_the_old_file_alone(self, tmp_path: Path, bird: Checkpoint) -> None:
        save(tmp_path / "bird", bird)
        before = (tmp_path / "bird").read_bytes()
        too_large = replace(bird, tensors=bird.tensors | {"cls_token": torch.full((1, 1, 192), 1e6)})
        with pytest.raises(WeightsError, match="infinities or NaN in cls_token"):
            save(tmp_path / "bird", too_large, half=True)
        assert (tmp_path / "bird").read_bytes() == before

    def test_a_save_that_fails_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bird: Checkpoint
    ) -> None:
        save(tmp_path / "bird", bird)
        before = (tmp_path / "bird").read_bytes()

        def full_disk(source: object, target: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path / "bird", replace(bird, license="other"))
        assert [path.name for path in tmp_path.iterdir()] == ["bird"]
        assert (tmp_path / "bird").read_bytes() == before

    def test_others_may_read_the_file(self, tmp_path: Path, bird: Checkpoint) -> None:
        (tmp_path / "plain").touch()
        save(tmp_path / "bird", bird)
        assert (tmp_path / "bird").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_the_setting_wins_over_the_metadata(self, tmp_path: Path, bird: Checkpoint) -> None:
        save(tmp_path / "bird", bird)
        assert not load(tmp_path / "bird").config.norm_pix_loss
        assert load(tmp_path / "bird", norm_pix_loss=True).config.norm_pix_loss

    def test_the_packaged_model_is_the_preset(self) -> None:
        packaged = load(locate(None, None).path, model="mae_tiny")
        assert packaged.config == PRESETS["mae_tiny"]
        assert packaged.preprocessing == Preprocessing()
        assert packaged.license is not None
        assert "CC BY 4.0" in packaged.license


class TestFacebookresearch:
    def test_golden_embeddings(self, tmp_path: Path, probe: Path, golden: Mapping[str, np.ndarray]) -> None:
        loaded = load(torch_file(tmp_path / "mae.pth", {"model": load_file(probe)}))
        assert loaded.layout == "facebookresearch"
        assert loaded.config == PRESETS["mae_tiny"].model_copy(update={"name": "mae"})
        graph = EncoderGraph(loaded.build(), loaded.preprocessing)
        patches = patchify(torch.from_numpy(golden["images"][:2]), 16)
        pooled, _ = graph(patches, torch.arange(196).expand(2, -1))
        assert np.abs(pooled[:, 0].numpy() - golden["embed_cls"][:2]).max() < 1e-4

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
    def test_sizes_are_read_from_the_tensors(
        self, tmp_path: Path, zipped: bool, wrapped: bool, weights: dict[str, Tensor], config: MAEConfig
    ) -> None:
        content = {"model": weights} if wrapped else weights
        torch.save(content, tmp_path / "bird.pth", _use_new_zipfile_serialization=zipped)
        loaded = load(tmp_path / "bird.pth")
        assert loaded.config == config
        assert same(loaded.tensors, weights)
        assert loaded.preprocessing == Preprocessing()
        assert loaded.license is None

    @pytest.mark.parametrize("norm_pix_loss", [True, False])
    def test_training_checkpoints_say_what_they_predict(
        self, tmp_path: Path, norm_pix_loss: bool, weights: dict[str, Tensor]
    ) -> None:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
        content = {
            "model": weights,
            "optimizer": optimizer.state_dict(),
            "epoch": 799,
            "scaler": {"scale": 65536.0, "growth_factor": 2.0},
            "args": argparse.Namespace(norm_pix_loss=norm_pix_loss, blr=1.5e-4, device="cuda", resume=""),
        }
        path = torch_file(tmp_path / "checkpoint-799.pth", content)
        assert load(path).config.norm_pix_loss is norm_pix_loss
        assert load(path, norm_pix_loss=not norm_pix_loss).config.norm_pix_loss is not norm_pix_loss

    def test_an_encoder_alone(self, tmp_path: Path, encoder: dict[str, Tensor]) -> None:
        loaded = load(torch_file(tmp_path / "mae_pretrain.pth", {"model": encoder}))
        assert (loaded.layout, loaded.config.decoder_depth) == ("facebookresearch", 0)
        assert not loaded.build().config.has_decoder

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_any_precision_becomes_float32(
        self, tmp_path: Path, dtype: torch.dtype, weights: dict[str, Tensor]
    ) -> None:
        state = {name: tensor.to(dtype) for name, tensor in weights.items()}
        loaded = load(torch_file(tmp_path / "bird.pth", state))
        assert {tensor.dtype for tensor in loaded.tensors.values()} == {torch.float32}
        assert same(loaded.tensors, {name: tensor.float() for name, tensor in state.items()})
        assert loaded.config.positions == "sincos", "rounding does not make fixed positions learned"

    def test_other_positions_are_learned_ones(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        state = weights | {"decoder_pos_embed": weights["decoder_pos_embed"] + 0.02}
        assert load(torch_file(tmp_path / "bird.pth", state)).config.positions == "learned"

    def test_a_bare_safetensors_with_a_decoder(
        self, tmp_path: Path, weights: dict[str, Tensor], config: MAEConfig
    ) -> None:
        save_file(weights, tmp_path / "bird.safetensors")
        loaded = load(tmp_path / "bird.safetensors")
        assert (loaded.layout, loaded.config) == ("facebookresearch", config)

    def test_without_biases_of_queries_keys_and_values(
        self, tmp_path: Path, config: MAEConfig, weights: dict[str, Tensor]
    ) -> None:
        state = {name: tensor for name, tensor in weights.items() if not name.endswith("qkv.bias")}
        assert load(torch_file(tmp_path / "bird.pth", state)).config == config.model_copy(update={"qkv_bias": False})


class TestBuild:
    def test_a_built_model_is_for_inference(self, bird: Checkpoint, weights: dict[str, Tensor]) -> None:
        model = bird.build()
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
        assert same(model.state_dict(), weights)

    def test_fixed_positions_are_computed_for_another_size(self, bird: Checkpoint) -> None:
        model = bird.build(image_size=56)
        assert model.config.image_size == 56
        assert torch.equal(model.pos_embed, sincos_positions(192, 7))
        assert torch.equal(model.decoder_pos_embed, sincos_positions(128, 7))
        patches = torch.randn(1, 49, 192)
        loss, pred, _ = model(patches, torch.tensor([[0, 8, 48]]))
        assert pred.shape == (1, 49, 192)
        assert loss.isfinite()

    @pytest.mark.slow
    def test_learned_positions_are_interpolated_as_transformers_does(self, tmp_path: Path, hugging_face: Save) -> None:
        reference = hugging_face(tmp_path)
        with torch.no_grad():
            reference.vit.embeddings.position_embeddings.normal_()
        reference.save_pretrained(tmp_path)
        model = load(tmp_path).build(image_size=48)
        expected = reference.vit.embeddings.interpolate_pos_encoding(torch.zeros(1, 36, 24), 48, 48)
        torch.testing.assert_close(model.pos_embed, expected, atol=1e-5, rtol=0, check_stride=False)
        assert model.decoder_pos_embed.shape == (1, 37, 16)

    def test_the_checkpoint_stays_as_it_was(self, bird: Checkpoint) -> None:
        before = {name: tensor.clone() for name, tensor in bird.tensors.items()}
        bird.build(image_size=56)
        assert same(bird.tensors, before)
        assert bird.config.image_size == 32

    @pytest.mark.parametrize("image_size", [33, 0, -8])
    def test_a_size_that_is_no_multiple_of_the_patch_is_refused(self, image_size: int, bird: Checkpoint) -> None:
        with pytest.raises(ValueError, match=f"image_size {image_size} is not a multiple of the patch size, 8"):
            bird.build(image_size)


class TestPresets:
    def test_a_file_that_is_not_the_preset_is_refused_by_what_differs(
        self, tmp_path: Path, weights: dict[str, Tensor]
    ) -> None:
        path = torch_file(tmp_path / "bird.pth", weights)
        with pytest.raises(WeightsError, match=r"is not mae_base: .*; embed_dim is 192, expected 768; patch_size is 8"):
            load(path, model="mae_base")

    def test_so_is_a_file_with_a_config(self, tmp_path: Path, bird: Checkpoint) -> None:
        save(tmp_path / "bird", bird)
        with pytest.raises(WeightsError, match="is not mae_tiny: decoder_depth is 1, expected 2; depth is 2, expected"):
            load(tmp_path / "bird", model="mae_tiny")

    def test_an_encoder_alone_may_be_the_preset(self, tmp_path: Path, probe: Path) -> None:
        tiny = {name: tensor for name, tensor in load_file(probe).items() if "decoder" not in name}
        del tiny["mask_token"]
        loaded = load(torch_file(tmp_path / "mae.pth", tiny), model="mae_tiny")
        assert loaded.config.decoder_depth == 0

    def test_an_unknown_preset_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no preset 'mae_giant': the presets are mae_tiny, "):
            load(tmp_path, model="mae_giant")


class Touch:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", ["model", "args", "optimizer"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, zipped: bool, key: str, weights: dict[str, Tensor]) -> None:
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Touch(victim))).close()
    assert victim.exists(), "the trap works"
    victim.unlink()
    content = {"model": weights} | {key: Touch(victim)}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="refused by PyTorch's safe loader"):
        load(tmp_path / "trap.pth")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="refused by PyTorch's safe loader"):
        load(tmp_path / "trap.pth")
    assert not victim.exists()
