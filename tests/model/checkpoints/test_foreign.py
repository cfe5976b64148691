import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints.checkpoint import load
from model.checkpoints.errors import WeightsError
from model.config import MAEConfig, Preprocessing

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import ViTMAEForPreTraining

Save = Callable[..., "ViTMAEForPreTraining"]
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


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def timm_folder(folder: Path, encoder: dict[str, Tensor], config: Mapping[str, object] = TIMM) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(encoder, folder / "model.safetensors")
    return folder


class TestHuggingFace:
    def test_config_is_believed(self, tmp_path: Path, hugging_face: Save) -> None:
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
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, generation: str, met: str, hugging_face: Save
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
        assert f"spellings of Hugging Face names: {met}" in caplog.text
        assert torch.equal(
            expected["blocks.1.attn.qkv.weight"][24:48], reference.vit.layers[1].attention.k_proj.weight
        ), "queries, keys and values are stacked in this order"

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_an_encoder_alone(self, tmp_path: Path, in_memory: bool, hugging_face: Save) -> None:
        from transformers import ViTMAEModel

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

    def test_shards(self, tmp_path: Path, hugging_face: Save) -> None:
        reference = hugging_face(tmp_path)
        expected = load(tmp_path).tensors
        (tmp_path / "model.safetensors").unlink()
        reference.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert same(load(tmp_path).tensors, expected)

    def test_weights_of_the_days_before_safetensors(self, tmp_path: Path, hugging_face: Save) -> None:
        hugging_face(tmp_path)
        expected = load(tmp_path).tensors
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        assert same(load(tmp_path).tensors, expected)

    def test_half_precision_becomes_float32(self, tmp_path: Path, hugging_face: Save) -> None:
        reference = hugging_face(tmp_path)
        reference.bfloat16().save_pretrained(tmp_path)
        loaded = load(tmp_path)
        assert {tensor.dtype for tensor in loaded.tensors.values()} == {torch.float32}
        assert loaded.config.positions == "sincos"

    def test_the_licence_is_the_model_cards(self, tmp_path: Path, hugging_face: Save) -> None:
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
    def test_preparation(
        self, tmp_path: Path, written: dict[str, object], expected: Preprocessing, hugging_face: Save
    ) -> None:
        hugging_face(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
        assert load(tmp_path).preprocessing == expected

    def test_without_a_preprocessor_images_are_prepared_as_upstream_does(
        self, tmp_path: Path, hugging_face: Save
    ) -> None:
        hugging_face(tmp_path)
        loaded = load(tmp_path)
        assert loaded.preprocessing == Preprocessing()
        assert "so ImageNet's mean and deviation and the resize of upstream's MAE are used" in loaded.notes[0]

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
    def test_preparations_that_cannot_be_served_are_refused(
        self, tmp_path: Path, written: dict[str, object], hugging_face: Save
    ) -> None:
        hugging_face(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
        with pytest.raises(WeightsError):
            load(tmp_path)


class TestTimm:
    def test_a_folder(self, tmp_path: Path, encoder: dict[str, Tensor]) -> None:
        loaded = load(timm_folder(tmp_path, encoder))
        assert (loaded.layout, loaded.license) == ("timm", "cc-by-nc-4.0")
        assert same(loaded.tensors, encoder)
        assert loaded.config.model_dump(exclude={"name"}) == MAEConfig(
            image_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3, decoder_depth=0
        ).model_dump(exclude={"name"})
        assert loaded.preprocessing == Preprocessing(
            crop_fraction=0.9, filter="bilinear", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
        )

    def test_a_flat_config_as_before_timm_0_9(self, tmp_path: Path, encoder: dict[str, Tensor]) -> None:
        flat = {"architecture": "vit_tiny", "input_size": [3, 32, 32], "crop_pct": 0.8, "mean": [0.1, 0.1, 0.1]}
        assert load(timm_folder(tmp_path, encoder, flat)).preprocessing == Preprocessing(
            crop_fraction=0.8, mean=(0.1, 0.1, 0.1)
        )

    def test_a_bare_file(self, tmp_path: Path, encoder: dict[str, Tensor]) -> None:
        save_file(encoder, tmp_path / "vit.safetensors")
        loaded = load(tmp_path / "vit.safetensors")
        assert (loaded.layout, loaded.config.name) == ("timm", "vit")
        assert same(loaded.tensors, encoder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"input_size": [3, 64, 64]}, r"has the input_size \[3, 64, 64\]: its positions expect 32 pixels"),
            ({"crop_mode": "border"}, "crop_mode is 'border'"),
            ({"interpolation": "random"}, "interpolation is 'random'"),
        ],
    )
    def test_preparations_that_cannot_be_served_are_refused(
        self, tmp_path: Path, encoder: dict[str, Tensor], change: dict[str, object], message: str
    ) -> None:
        timm_folder(tmp_path, encoder, TIMM | {"pretrained_cfg": TIMM["pretrained_cfg"] | change})
        with pytest.raises(WeightsError, match=message):
            load(tmp_path)
