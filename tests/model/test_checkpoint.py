import argparse
import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from model.checkpoint import Checkpoint, load, save
from model.config import PRESETS, MAEConfig, Preprocessing
from model.graphs import EncoderGraph
from model.mae import MaskedAutoencoder, patchify, sincos_positions
from model.source import WeightsError, locate

# Of usual widths, so that files without a config can be read too.
CONFIG = MAEConfig(
    name="bird",
    image_size=32,
    patch_size=8,
    embed_dim=192,
    depth=2,
    num_heads=3,
    decoder_embed_dim=128,
    decoder_depth=1,
    decoder_num_heads=4,
)
TIMM = {
    "architecture": "vit_tiny_patch8_32",
    "num_classes": 0,
    "pretrained_cfg": {
        "tag": "mae",
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.1, 0.2, 0.3],
        "license": "cc-by-nc-4.0",
    },
}


def weights(config: MAEConfig = CONFIG) -> dict[str, Tensor]:
    """A state dict under upstream's names, random but for fixed positions."""
    generator = torch.Generator().manual_seed(0)
    state = MaskedAutoencoder(config).state_dict()
    return {
        name: tensor if "pos_embed" in name else torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in state.items()
    }


def encoder(config: MAEConfig = CONFIG) -> dict[str, Tensor]:
    """The same without a decoder."""
    return weights(config.model_copy(update={"decoder_depth": 0}))


def checkpoint() -> Checkpoint:
    preprocessing = Preprocessing(crop_fraction=0.875, filter="lanczos", mean=(0.5, 0.5, 0.5))
    return Checkpoint(CONFIG, preprocessing, "mae-serve", weights(), "CC0")


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def hugging_face(folder: Path, **changes: object) -> ViTMAEForPreTraining:
    """A tiny ViTMAE saved by transformers itself."""
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "image_size": 32,
        "patch_size": 8,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 20,
    }
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**sizes | changes)).eval()
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.copy_(sincos_positions(24, 4))
        model.decoder.decoder_pos_embed.copy_(sincos_positions(16, 4))
    model.save_pretrained(folder)
    return model


def timm_folder(folder: Path, config: Mapping[str, object] = TIMM) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(encoder(), folder / "model.safetensors")
    return folder


class TestOurOwnFormat:
    def test_what_is_saved_comes_back(self, tmp_path: Path) -> None:
        saved = checkpoint()
        save(tmp_path / "bird.safetensors", saved)
        loaded = load(tmp_path / "bird.safetensors")
        assert same(loaded.tensors, saved.tensors)
        assert (loaded.config, loaded.preprocessing) == (saved.config, saved.preprocessing)
        assert (loaded.layout, loaded.license) == ("mae-serve", "CC0")

    def test_half_is_half_the_size_and_loads_as_float32(self, tmp_path: Path) -> None:
        saved = checkpoint()
        save(tmp_path / "whole", saved)
        save(tmp_path / "half", saved, half=True)
        assert (tmp_path / "half").stat().st_size < 0.51 * (tmp_path / "whole").stat().st_size
        loaded = load(tmp_path / "half")
        assert loaded.config == saved.config
        for name, tensor in loaded.tensors.items():
            assert torch.equal(tensor, saved.tensors[name].half().float())

    def test_a_weight_too_large_for_half_leaves_the_old_file_alone(self, tmp_path: Path) -> None:
        saved = checkpoint()
        save(tmp_path / "bird", saved)
        before = (tmp_path / "bird").read_bytes()
        too_large = replace(saved, tensors=saved.tensors | {"cls_token": torch.full((1, 1, 192), 1e6)})
        with pytest.raises(WeightsError, match="infinities or NaN in cls_token"):
            save(tmp_path / "bird", too_large, half=True)
        assert (tmp_path / "bird").read_bytes() == before

    def test_a_save_that_fails_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "bird", checkpoint())
        before = (tmp_path / "bird").read_bytes()

        def full_disk(source: object, target: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path / "bird", replace(checkpoint(), license="other"))
        assert [path.name for path in tmp_path.iterdir()] == ["bird"]
        assert (tmp_path / "bird").read_bytes() == before

    def test_others_may_read_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        save(tmp_path / "bird", checkpoint())
        assert (tmp_path / "bird").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_the_setting_wins_over_the_metadata(self, tmp_path: Path) -> None:
        save(tmp_path / "bird", checkpoint())
        assert not load(tmp_path / "bird").config.norm_pix_loss
        assert load(tmp_path / "bird", norm_pix_loss=True).config.norm_pix_loss

    def test_the_packaged_model_is_the_preset(self) -> None:
        packaged = load(locate(None, None).path, model="mae_tiny")
        assert packaged.config == PRESETS["mae_tiny"]
        assert packaged.preprocessing == Preprocessing()
        assert packaged.license is not None
        assert "CC BY 4.0" in packaged.license


class TestFacebookresearch:
    def test_golden_embeddings(self, tmp_path: Path, golden: Mapping[str, np.ndarray]) -> None:
        packaged = load_file(locate(None, None).path)
        loaded = load(torch_file(tmp_path / "mae.pth", {"model": packaged}))
        assert loaded.layout == "facebookresearch"
        assert loaded.config == PRESETS["mae_tiny"].model_copy(update={"name": "mae"})
        graph = EncoderGraph(loaded.build(), loaded.preprocessing)
        patches = patchify(torch.from_numpy(golden["images"][:2]), 16)
        pooled, _ = graph(patches, torch.arange(196).expand(2, -1))
        assert np.abs(pooled[:, 0].numpy() - golden["embed_cls"][:2]).max() < 1e-4

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
    def test_sizes_are_read_from_the_tensors(self, tmp_path: Path, zipped: bool, wrapped: bool) -> None:
        state = weights()
        content = {"model": state} if wrapped else state
        torch.save(content, tmp_path / "bird.pth", _use_new_zipfile_serialization=zipped)
        loaded = load(tmp_path / "bird.pth")
        assert loaded.config == CONFIG
        assert same(loaded.tensors, state)
        assert loaded.preprocessing == Preprocessing()
        assert loaded.license is None

    @pytest.mark.parametrize("norm_pix_loss", [True, False])
    def test_training_checkpoints_say_what_they_predict(self, tmp_path: Path, norm_pix_loss: bool) -> None:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
        content = {
            "model": weights(),
            "optimizer": optimizer.state_dict(),
            "epoch": 799,
            "scaler": {"scale": 65536.0, "growth_factor": 2.0},
            "args": argparse.Namespace(norm_pix_loss=norm_pix_loss, blr=1.5e-4, device="cuda", resume=""),
        }
        path = torch_file(tmp_path / "checkpoint-799.pth", content)
        assert load(path).config.norm_pix_loss is norm_pix_loss
        assert load(path, norm_pix_loss=not norm_pix_loss).config.norm_pix_loss is not norm_pix_loss

    def test_an_encoder_alone(self, tmp_path: Path) -> None:
        loaded = load(torch_file(tmp_path / "mae_pretrain.pth", {"model": encoder()}))
        assert (loaded.layout, loaded.config.decoder_depth) == ("facebookresearch", 0)
        assert not loaded.build().config.has_decoder

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_any_precision_becomes_float32(self, tmp_path: Path, dtype: torch.dtype) -> None:
        state = {name: tensor.to(dtype) for name, tensor in weights().items()}
        loaded = load(torch_file(tmp_path / "bird.pth", state))
        assert {tensor.dtype for tensor in loaded.tensors.values()} == {torch.float32}
        assert same(loaded.tensors, {name: tensor.float() for name, tensor in state.items()})
        assert loaded.config.positions == "sincos", "rounding does not make fixed positions learned"

    def test_other_positions_are_learned_ones(self, tmp_path: Path) -> None:
        state = weights()
        state["decoder_pos_embed"] = state["decoder_pos_embed"] + 0.02 * torch.randn(1, 17, 128)
        assert load(torch_file(tmp_path / "bird.pth", state)).config.positions == "learned"

    def test_a_bare_safetensors_with_a_decoder(self, tmp_path: Path) -> None:
        save_file(weights(), tmp_path / "bird.safetensors")
        loaded = load(tmp_path / "bird.safetensors")
        assert (loaded.layout, loaded.config) == ("facebookresearch", CONFIG)

    def test_without_biases_of_queries_keys_and_values(self, tmp_path: Path) -> None:
        config = CONFIG.model_copy(update={"qkv_bias": False})
        assert load(torch_file(tmp_path / "bird.pth", weights(config))).config == config

    def test_a_preset_gives_the_heads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PRESETS, "odd", CONFIG.model_copy(update={"name": "odd", "num_heads": 6}))
        path = torch_file(tmp_path / "bird.pth", weights())
        assert load(path, model="odd").config.num_heads == 6
        assert load(path).config.num_heads == 3


class TestHuggingFace:
    def test_config_is_believed(self, tmp_path: Path) -> None:
        hugging_face(tmp_path / "bird", layer_norm_eps=1e-5, norm_pix_loss=True, qkv_bias=False)
        loaded = load(tmp_path / "bird")
        assert loaded.layout == "huggingface"
        assert loaded.config == MAEConfig(
            name="bird",
            image_size=32,
            patch_size=8,
            embed_dim=24,
            depth=2,
            num_heads=2,
            mlp_ratio=40 / 24,
            decoder_embed_dim=16,
            decoder_depth=1,
            decoder_num_heads=4,
            decoder_mlp_ratio=20 / 16,
            qkv_bias=False,
            layer_norm_eps=1e-5,
            positions="sincos",
            norm_pix_loss=True,
        )
        assert not load(tmp_path / "bird", norm_pix_loss=False).config.norm_pix_loss

    @pytest.mark.parametrize(
        ("generation", "met"),
        [
            ("published", "decoder.decoder_layers, vit.encoder.layer"),
            ("in memory", "decoder.decoder_layers, vit.layers"),
            ("saved", "decoder.decoder_encoder.layer, vit.encoder.layer"),
        ],
    )
    def test_names_of_every_generation(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, generation: str, met: str
    ) -> None:
        reference = hugging_face(tmp_path)
        file = tmp_path / "model.safetensors"
        expected = load(tmp_path).tensors
        state = dict(reference.state_dict()) if generation == "in memory" else load_file(file)
        if generation == "published":
            state = {name.replace("decoder_encoder.layer", "decoder_layers"): state[name] for name in state}
        save_file(state, file)
        with caplog.at_level(logging.INFO):
            assert same(load(tmp_path).tensors, expected)
        assert f"names met: {met}" in caplog.text
        assert torch.equal(
            expected["blocks.1.attn.qkv.weight"][24:48], reference.vit.layers[1].attention.k_proj.weight
        ), "queries, keys and values are stacked in this order"

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_an_encoder_alone(self, tmp_path: Path, in_memory: bool) -> None:
        whole = hugging_face(tmp_path)
        alone = ViTMAEModel(whole.config)
        alone.load_state_dict(whole.vit.state_dict())
        expected = {name: tensor for name, tensor in load(tmp_path).tensors.items() if not name.startswith("decoder")}
        del expected["mask_token"]
        alone.save_pretrained(tmp_path)
        if in_memory:
            save_file(alone.state_dict(), tmp_path / "model.safetensors")
        loaded = load(tmp_path)
        assert loaded.config.decoder_depth == 0
        assert same(loaded.tensors, expected)

    def test_shards(self, tmp_path: Path) -> None:
        reference = hugging_face(tmp_path)
        expected = load(tmp_path).tensors
        (tmp_path / "model.safetensors").unlink()
        reference.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert same(load(tmp_path).tensors, expected)

    def test_weights_of_the_days_before_safetensors(self, tmp_path: Path) -> None:
        hugging_face(tmp_path)
        expected = load(tmp_path).tensors
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        assert same(load(tmp_path).tensors, expected)

    def test_half_precision_becomes_float32(self, tmp_path: Path) -> None:
        reference = hugging_face(tmp_path)
        reference.bfloat16().save_pretrained(tmp_path)
        loaded = load(tmp_path)
        assert {tensor.dtype for tensor in loaded.tensors.values()} == {torch.float32}
        assert loaded.config.positions == "sincos"

    def test_the_licence_is_the_model_cards(self, tmp_path: Path) -> None:
        hugging_face(tmp_path)
        (tmp_path / "README.md").write_text("---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Bird\nlicense: none\n")
        assert load(tmp_path).license == "apache-2.0"

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            (
                # as published with facebook/vit-mae-*, by the feature extractor of 2022
                {"do_normalize": True, "do_resize": True, "resample": 2, "size": 32}
                | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
                Preprocessing(resize="squash", filter="bilinear"),
            ),
            (
                {"size": {"height": 32, "width": 32}, "resample": 3, "rescale_factor": 0.00392156862745098}
                | {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "do_center_crop": None},
                Preprocessing(resize="squash", filter="bicubic", mean=(0.1, 0.2, 0.3), std=(1, 1, 1)),
            ),
            (
                {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
                | {"resample": 1, "do_normalize": False},
                Preprocessing(crop_fraction=32 / 36, filter="lanczos", mean=(0, 0, 0), std=(1, 1, 1)),
            ),
            (
                {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32, "resample": 0},
                Preprocessing(filter="nearest", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
            ),
        ],
        ids=["old", "squash", "crop", "crop without margin"],
    )
    def test_preparation(self, tmp_path: Path, written: dict[str, object], expected: Preprocessing) -> None:
        hugging_face(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
        assert load(tmp_path).preprocessing == expected

    def test_without_a_preprocessor_images_are_prepared_as_upstream_does(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        hugging_face(tmp_path)
        assert load(tmp_path).preprocessing == Preprocessing()
        assert "no preprocessor_config.json" in caplog.text

    @pytest.mark.parametrize(
        "written",
        [
            {"size": 48},
            {"size": {"height": 32, "width": 48}},
            {"size": {"shortest_edge": 36}},
            {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 24},
            {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": 32},
            {"size": 32, "rescale_factor": 1 / 127.5},
            {"size": 32, "do_rescale": False},
            {"size": 32, "do_resize": False},
            {"size": 32, "resample": 9},
            {"size": 32, "image_std": [0, 0, 0]},
        ],
        ids=json.dumps,
    )
    def test_preparations_that_cannot_be_served_are_refused(self, tmp_path: Path, written: dict[str, object]) -> None:
        hugging_face(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
        with pytest.raises(WeightsError):
            load(tmp_path)


class TestTimm:
    def test_a_folder(self, tmp_path: Path) -> None:
        loaded = load(timm_folder(tmp_path))
        assert (loaded.layout, loaded.license) == ("timm", "cc-by-nc-4.0")
        assert same(loaded.tensors, encoder())
        assert loaded.config.model_dump(exclude={"name"}) == MAEConfig(
            image_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, decoder_depth=0
        ).model_dump(exclude={"name"})
        assert loaded.preprocessing == Preprocessing(
            crop_fraction=0.9, filter="bilinear", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
        )

    def test_a_flat_config_as_before_timm_0_9(self, tmp_path: Path) -> None:
        flat = {"architecture": "vit_tiny", "input_size": [3, 32, 32], "crop_pct": 0.8, "mean": [0.1, 0.1, 0.1]}
        assert load(timm_folder(tmp_path, flat)).preprocessing == Preprocessing(crop_fraction=0.8, mean=(0.1, 0.1, 0.1))

    def test_a_bare_file(self, tmp_path: Path) -> None:
        save_file(encoder(), tmp_path / "vit.safetensors")
        loaded = load(tmp_path / "vit.safetensors")
        assert (loaded.layout, loaded.config.name) == ("timm", "vit")
        assert same(loaded.tensors, encoder())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"input_size": [3, 64, 64]}, r"has the input_size \[3, 64, 64\]: its positions expect 32 pixels"),
            ({"crop_mode": "border"}, "crop_mode is 'border'"),
            ({"interpolation": "random"}, "interpolation is 'random'"),
        ],
    )
    def test_preparations_that_cannot_be_served_are_refused(
        self, tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        timm_folder(tmp_path, TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | change})
        with pytest.raises(WeightsError, match=message):
            load(tmp_path)


class TestBuild:
    def test_a_built_model_is_for_inference(self) -> None:
        model = checkpoint().build()
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
        assert same(model.state_dict(), weights())

    def test_fixed_positions_are_computed_for_another_size(self) -> None:
        model = checkpoint().build(image_size=56)
        assert model.config.image_size == 56
        assert torch.equal(model.pos_embed, sincos_positions(192, 7))
        assert torch.equal(model.decoder_pos_embed, sincos_positions(128, 7))
        patches = torch.randn(1, 49, 192)
        loss, pred, _ = model(patches, torch.tensor([[0, 8, 48]]))
        assert pred.shape == (1, 49, 192)
        assert loss.isfinite()

    def test_learned_positions_are_interpolated_as_transformers_does(self, tmp_path: Path) -> None:
        reference = hugging_face(tmp_path)
        with torch.no_grad():
            reference.vit.embeddings.position_embeddings.normal_()
        reference.save_pretrained(tmp_path)
        model = load(tmp_path).build(image_size=48)
        expected = reference.vit.embeddings.interpolate_pos_encoding(torch.zeros(1, 36, 24), 48, 48)
        torch.testing.assert_close(model.pos_embed, expected, atol=1e-5, rtol=0, check_stride=False)
        assert model.decoder_pos_embed.shape == (1, 37, 16)

    def test_the_checkpoint_stays_as_it_was(self) -> None:
        original = checkpoint()
        original.build(image_size=56)
        assert same(original.tensors, weights())
        assert original.config.image_size == 32

    @pytest.mark.parametrize("image_size", [33, 0, -8])
    def test_a_size_that_is_no_multiple_of_the_patch_is_refused(self, image_size: int) -> None:
        with pytest.raises(ValueError, match=f"image_size {image_size} is not a multiple of the patch size, 8"):
            checkpoint().build(image_size)


class Touch:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["model", "args", "optimizer"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, zipped: bool, place: str) -> None:
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Touch(victim))).close()
    assert victim.exists(), "the trap works"
    victim.unlink()
    content = {"model": weights()} | {place: Touch(victim)}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="refused by PyTorch's safe loader"):
        load(tmp_path / "trap.pth")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="refused by PyTorch's safe loader"):
        load(tmp_path / "trap.pth")
    assert not victim.exists()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def own(folder: Path, metadata: Mapping[str, object] | str, tensors: dict[str, Tensor] | None = None) -> Path:
    """A file of our format with a metadata of the test's choice."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(weights() if tensors is None else tensors, folder / "own.safetensors", {"mae-serve": text})
    return folder / "own.safetensors"


def described(**changes: object) -> dict[str, object]:
    return {"config": CONFIG.model_dump() | changes, "preprocessing": {}}


def truncated(folder: Path, save_to: Callable[[Path], object]) -> Path:
    path = folder / "truncated"
    save_to(path)
    return written(path, path.read_bytes()[:-1000])


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights().items() if key != name}


def hugging_face_with(folder: Path, changes: Mapping[str, object]) -> Path:
    hugging_face(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def hugging_face_renamed(folder: Path, old: str, new: str) -> Path:
    hugging_face(folder)
    state = load_file(folder / "model.safetensors")
    save_file({name.replace(old, new): tensor for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def lone_config(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder


def index(folder: Path, content: object) -> Path:
    lone_config(folder, '{"model_type": "vit_mae"}')
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda to: to / "nowhere.pth", "does not exist: expected a file or a folder"),
    "text": (lambda to: written(to / "a.txt", b"Dear diary"), "neither a safetensors file nor a PyTorch"),
    "empty file": (lambda to: written(to / "a", b""), "neither a safetensors file nor a PyTorch"),
    "other zip": (lambda to: written(to / "a.zip", b"PK\x05\x06" + bytes(18)), "refused by PyTorch's safe loader"),
    "truncated torch file": (
        lambda to: truncated(to, lambda path: torch.save(weights(), path)),
        "refused by PyTorch's safe loader",
    ),
    "truncated safetensors": (
        lambda to: truncated(to, lambda path: save_file(weights(), path)),
        "is a damaged safetensors file",
    ),
    "truncated own file": (lambda to: truncated(to, lambda path: save(path, checkpoint())), "is a damaged safetensors"),
    "list": (lambda to: torch_file(to / "a.pth", [1, 2]), "holds no state dict"),
    "numbers": (lambda to: torch_file(to / "a.pth", {"accuracy": 0.9}), "holds no state dict"),
    "nothing": (lambda to: torch_file(to / "a.pth", {"model": {}}), "holds no tensors: expected those of a masked"),
    "resnet": (
        lambda to: torch_file(to / "a.pth", {"conv1.weight": torch.ones(64, 3, 7, 7), "bn1.bias": torch.ones(64)}),
        "holds 2 tensors such as conv1.weight: expected those of a masked autoencoder",
    ),
    "classifier": (
        lambda to: torch_file(to / "a.pth", {"model": encoder() | {"head.weight": torch.ones(10, 192)}}),
        r"is a fine-tuned classifier \(it holds head.weight\)",
    ),
    "pooling classifier": (
        lambda to: torch_file(to / "a.pth", {"model": encoder() | {"fc_norm.weight": torch.ones(192)}}),
        r"is a fine-tuned classifier \(it holds fc_norm.weight\)",
    ),
    "missing tensors": (
        lambda to: torch_file(to / "a.pth", without("blocks.1.mlp.fc2.bias")),
        "lacks blocks.1.mlp.fc2.bias, which a masked autoencoder of its size has",
    ),
    "no positions": (lambda to: torch_file(to / "a.pth", without("pos_embed")), "lacks pos_embed"),
    "part of a decoder": (
        lambda to: torch_file(to / "a.pth", without("mask_token")),
        "lacks mask_token, which a masked autoencoder",
    ),
    "unexpected tensors": (
        lambda to: torch_file(to / "a.pth", weights() | {"z.a": torch.ones(1), "z.b": torch.ones(1)}),
        "holds z.a and 1 others, which no masked autoencoder of its size has",
    ),
    "mismatching shape": (
        lambda to: torch_file(to / "a.pth", weights() | {"norm.bias": torch.ones(10)}),
        r"holds norm.bias as \[10\]: expected \[192\]",
    ),
    "grey images": (
        lambda to: torch_file(to / "a.pth", weights() | {"patch_embed.proj.weight": torch.ones(192, 1, 8, 8)}),
        r"holds patch_embed.proj.weight as \[192, 1, 8, 8\]: expected \[192, 3, 8, 8\]",
    ),
    "flat patch embedding": (
        lambda to: torch_file(to / "a.pth", weights() | {"patch_embed.proj.weight": torch.ones(192, 192)}),
        r"holds patch_embed.proj.weight as \[192, 192\]: expected 4 dimensions",
    ),
    "oblong": (
        lambda to: torch_file(to / "a.pth", weights() | {"pos_embed": torch.ones(1, 13, 192)}),
        "has 13 positions: expected one for cls and those of a square",
    ),
    "unusual width": (
        lambda to: torch_file(to / "a.pth", encoder(CONFIG.model_copy(update={"embed_dim": 96}))),
        "is of an unusual width, and tensors do not tell the number of heads: say which with MODEL",
    ),
    "not a number": (
        lambda to: torch_file(to / "a.pth", weights() | {"norm.bias": torch.full((192,), torch.nan)}),
        "holds infinities or NaN in norm.bias",
    ),
    "infinite": (
        lambda to: torch_file(to / "a.pth", weights() | {"cls_token": torch.full((1, 1, 192), torch.inf)}),
        "holds infinities or NaN in cls_token",
    ),
    "quantised": (
        lambda to: torch_file(to / "a.pth", weights() | {"norm.bias": torch.ones(192, dtype=torch.int8)}),
        "holds norm.bias as torch.int8: expected floating-point",
    ),
    "own with broken metadata": (lambda to: own(to, "{"), "describes a model that cannot be: Invalid JSON"),
    "own of a later version": (
        lambda to: own(to, described() | {"version": 2}),
        "describes a model that cannot be: version is 2",
    ),
    "own that cannot be": (lambda to: own(to, described(num_heads=5)), "not a multiple of its 5 heads"),
    "own with other tensors": (lambda to: own(to, described(depth=3)), "lacks blocks.2.attn.proj.bias and 11 others"),
    "own with false positions": (
        lambda to: own(to, described(), weights() | {"pos_embed": torch.ones(1, 17, 192)}),
        "declares sine-cosine positions but holds other ones",
    ),
    "empty folder": (lambda to: to, "holds no config.json: expected a folder of Hugging Face's ViTMAE or of timm"),
    "other transformer": (
        lambda to: lone_config(to, '{"model_type": "resnet"}'),
        "has the model_type 'resnet' in its config.json: expected vit_mae",
    ),
    "config that is no JSON": (lambda to: lone_config(to, "hidden_size: 3"), "has a config.json that is not JSON"),
    "config that is a list": (lambda to: lone_config(to, "[]"), "has a config.json that is not a JSON object"),
    "folder without weights": (
        lambda to: lone_config(to, '{"model_type": "vit_mae"}'),
        "holds no model.safetensors, model.safetensors.index.json or pytorch_model.bin",
    ),
    "other activation": (
        lambda to: hugging_face_with(to, {"hidden_act": "gelu_new"}),
        r"describes a model that cannot be: hidden_act is 'gelu_new' \(Input should be 'gelu'\)",
    ),
    "other channels": (lambda to: hugging_face_with(to, {"num_channels": 4}), "num_channels is 4"),
    "oblong images": (lambda to: hugging_face_with(to, {"image_size": [32, 64]}), r"image_size is \[32, 64\]"),
    "other sizes": (
        lambda to: hugging_face_with(to, {"intermediate_size": 44}),
        r"holds blocks.0.mlp.fc1.weight as \[40, 24\]: expected \[44, 24\]",
    ),
    "unknown names": (
        lambda to: hugging_face_renamed(to, "layernorm_before", "ln1"),
        "lacks blocks.0.norm1.bias and",
    ),
    "no values": (
        lambda to: hugging_face_renamed(to, "attention.value.bias", "attention.v.bias"),
        "lacks blocks.0.attn.qkv.bias and",
    ),
    "file of a folder": (
        lambda to: hugging_face_renamed(to, "-", "-") / "model.safetensors",
        "expected those of a masked autoencoder, patch_embed.proj.weight first; pass its folder, config.json included",
    ),
    "missing shard": (
        lambda to: index(to, {"weight_map": {"a": "model-1.safetensors"}}),
        "lacks model-1.safetensors, which model.safetensors.index.json names",
    ),
    "shard elsewhere": (
        lambda to: index(to, {"weight_map": {"a": "../secret.safetensors"}}),
        "names a shard outside the folder",
    ),
    "no index": (lambda to: index(to, []), "without a weight_map"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(WeightsError, match=message) as refusal:
        load(path)
    assert str(refusal.value).startswith(f"{path} ")
    assert "\n" not in str(refusal.value), "one sentence"


def test_names_of_two_generations_at_once_are_refused(tmp_path: Path) -> None:
    reference = hugging_face(tmp_path)
    both = load_file(tmp_path / "model.safetensors") | {
        name: tensor.clone() for name, tensor in reference.state_dict().items()
    }
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="twice"):
        load(tmp_path)


def test_an_oblong_list_is_refused_but_a_square_one_is_a_side(tmp_path: Path) -> None:
    assert load(hugging_face_with(tmp_path, {"image_size": [32, 32]})).config.image_size == 32


class TestPresets:
    def test_a_file_that_is_not_the_preset_is_refused_by_what_differs(self, tmp_path: Path) -> None:
        path = torch_file(tmp_path / "bird.pth", weights())
        with pytest.raises(WeightsError, match=r"is not mae_base: .*; embed_dim is 192, expected 768; patch_size is 8"):
            load(path, model="mae_base")

    def test_so_is_a_file_with_a_config(self, tmp_path: Path) -> None:
        save(tmp_path / "bird", checkpoint())
        with pytest.raises(WeightsError, match="is not mae_tiny: decoder_depth is 1, expected 2; depth is 2, expected"):
            load(tmp_path / "bird", model="mae_tiny")

    def test_an_encoder_alone_may_be_the_preset(self, tmp_path: Path) -> None:
        tiny = {name: tensor for name, tensor in load_file(locate(None, None).path).items() if "decoder" not in name}
        del tiny["mask_token"]
        loaded = load(torch_file(tmp_path / "mae.pth", tiny), model="mae_tiny")
        assert loaded.config.decoder_depth == 0

    def test_an_unknown_preset_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no preset 'mae_giant': the presets are mae_tiny, "):
            load(tmp_path, model="mae_giant")
