"""Classifiers fine-tuned elsewhere: their logits are transformers', or those of timm's and upstream's formulae."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import POOL_INDEX, pools_of
from model.checkpoints.heads_file import read_heads
from model.config import Preprocessing
from model.nn.serving import EncoderGraph
from model.nn.vit import patchify
from tests.support.vit_formula import encode, layer_norm

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import ViTConfig

State = dict[str, Tensor]
PIXELS = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
CLASSES = ("crow", "jay", "magpie", "rook", "raven")


def standardised(preprocessing: Preprocessing) -> Tensor:
    """The pixels as [B, 3, H, W]."""
    scaled = (PIXELS / 255 - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return scaled.permute(0, 3, 1, 2)


def pooled_of(loaded: Checkpoint) -> tuple[Tensor, Tensor]:
    """What is served: pooled vectors [B, 2, D] and the tokens [B, 1 + N, D]."""
    graph = EncoderGraph(loaded.build(), loaded.preprocessing)
    return graph(patchify(PIXELS, 8), torch.arange(16).expand(len(PIXELS), -1))  # type: ignore[no-any-return]


def require_logits(loaded: Checkpoint, expected: Tensor, classes: tuple[str, ...]) -> None:
    head = loaded.heads.head
    assert head is not None and head.config.classes == classes
    vectors = pooled_of(loaded)[0][:, POOL_INDEX[head.config.pool]].numpy()
    assert np.abs(vectors @ head.weight.T + head.bias - expected.numpy()).max() < 1e-4
    np.testing.assert_allclose(head.probabilities(vectors), expected.softmax(dim=-1), atol=1e-4)


def linear_head(seed: int = 3) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(5, 192, generator=generator),
        "head.bias": torch.randn(5, generator=generator),
    }


def probe_head(width: int, norm_width: int) -> State:
    return {
        "head.0.running_mean": torch.zeros(norm_width),
        "head.0.running_var": torch.ones(norm_width),
        "head.1.weight": torch.ones(5, width),
        "head.1.bias": torch.ones(5),
    }


@pytest.fixture
def averaged(encoder: State) -> State:
    """An encoder that was fine-tuned on the mean of its tokens: fc_norm stands in the place of norm."""
    generator = torch.Generator().manual_seed(4)
    state = {name: tensor for name, tensor in encoder.items() if not name.startswith("norm.")}
    return state | {
        "fc_norm.weight": 1 + 0.3 * torch.randn(192, generator=generator),
        "fc_norm.bias": torch.randn(192, generator=generator),
    }


def logits_of_mean(state: State, images: Tensor, heads: int = 3) -> Tensor:
    """models_vit.py with global_pool, and timm's `avg`: mean of the patches' tokens, fc_norm, head."""
    mean = encode(state, images, heads, norm=False)[:, 1:].mean(dim=1)
    return F.linear(layer_norm(state, "fc_norm", mean), state["head.weight"], state["head.bias"])


def timm_folder(folder: Path, state: State, **settings: Any) -> Path:
    pretrained = {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    settings = {"architecture": "vit_tiny_patch8_32", "num_classes": 5, "pretrained_cfg": pretrained} | settings
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(state, folder / "model.safetensors")
    return folder


class TestHuggingFace:
    def config(self, **changes: object) -> "ViTConfig":
        from transformers import ViTConfig

        torch.manual_seed(0)
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 60}
        return ViTConfig(**sizes | {"image_size": 32, "patch_size": 8} | changes)

    def randomise(self, model: torch.nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)

    @torch.no_grad()
    def test_a_classifier(self, tmp_path: Path) -> None:
        from transformers import ViTForImageClassification

        names = dict(enumerate(CLASSES))
        model = ViTForImageClassification(self.config(id2label=names, label2id={v: k for k, v in names.items()})).eval()
        self.randomise(model)
        model.save_pretrained(tmp_path)
        loaded = load(tmp_path)
        expected = model(pixel_values=standardised(loaded.preprocessing)).logits
        require_logits(loaded, expected, CLASSES)
        assert (loaded.layout, loaded.config.layer_norm_eps, loaded.config.num_heads) == ("huggingface", 1e-12, 4)

    @pytest.mark.parametrize("pooler", [True, False])
    @torch.no_grad()
    def test_an_encoder(self, tmp_path: Path, pooler: bool) -> None:
        from transformers import ViTModel

        model = ViTModel(self.config(), add_pooling_layer=pooler).eval()
        self.randomise(model)
        model.save_pretrained(tmp_path)
        loaded = load(tmp_path)
        expected = model(pixel_values=standardised(loaded.preprocessing)).last_hidden_state
        torch.testing.assert_close(pooled_of(loaded)[1], expected, atol=1e-4, rtol=0)
        assert loaded.heads.head is None
        assert any("before the pooler: pooler.dense.bias and 1 more" in note for note in loaded.notes) == pooler

    def test_other_problems_than_the_choice_of_one_class_are_refused(self, tmp_path: Path) -> None:
        from transformers import ViTForImageClassification

        ViTForImageClassification(self.config(problem_type="multi_label_classification")).save_pretrained(tmp_path)
        message = "has the problem_type 'multi_label_classification' in its config.json: expected single_label_"
        with pytest.raises(WeightsError, match=message):
            load(tmp_path)

    def test_a_regression_is_refused(self, tmp_path: Path) -> None:
        from transformers import ViTForImageClassification

        model = ViTForImageClassification(self.config(num_labels=1))
        model.save_pretrained(tmp_path / "whole")
        with pytest.raises(WeightsError, match="has a head of one label, a regression to transformers: expected sev"):
            load(tmp_path / "whole")
        model.vit.save_pretrained(tmp_path / "encoder")  # what the message says
        assert load(tmp_path / "encoder").heads.head is None


class TestTimm:
    def test_token_pooling(self, tmp_path: Path, encoder: State) -> None:
        state = encoder | linear_head()
        loaded = load(timm_folder(tmp_path, state, global_pool="token", label_names=list(CLASSES)))
        cls = encode(state, standardised(loaded.preprocessing), 3)[:, 0]
        require_logits(loaded, F.linear(cls, state["head.weight"], state["head.bias"]), CLASSES)
        assert (loaded.layout, loaded.notes) == ("timm", ())

    def test_average_pooling_with_fc_norm(self, tmp_path: Path, averaged: State) -> None:
        state = averaged | linear_head()
        loaded = load(timm_folder(tmp_path, state, global_pool="avg"))
        images = standardised(loaded.preprocessing)
        require_logits(loaded, logits_of_mean(state, images), ("0", "1", "2", "3", "4"))
        pooled, tokens = pooled_of(loaded)
        raw = encode(state, images, 3, norm=False)
        torch.testing.assert_close(tokens, raw, atol=1e-4, rtol=0)
        vector = layer_norm(state, "fc_norm", raw[:, 1:].mean(dim=1))
        torch.testing.assert_close(pooled[:, 1], vector, atol=1e-4, rtol=0)
        assert torch.equal(pooled[:, 0], pooled[:, 1]), "the cls token stands for nothing"
        assert not loaded.config.has_cls and pools_of(loaded.config) == ("mean",)

    def test_average_pooling_of_normed_tokens(self, tmp_path: Path, encoder: State) -> None:
        state = encoder | linear_head()
        arguments = {"global_pool": "avg", "fc_norm": False}
        loaded = load(timm_folder(tmp_path, state, model_args=arguments, label_names={"1": "b", "0": "a"} | LATER))
        mean = encode(state, standardised(loaded.preprocessing), 3)[:, 1:].mean(dim=1)
        require_logits(loaded, F.linear(mean, state["head.weight"], state["head.bias"]), ("a", "b", "c", "d", "e"))

    def test_without_a_head_the_vectors_are_still_normed_after_the_mean(self, tmp_path: Path, averaged: State) -> None:
        loaded = load(timm_folder(tmp_path, averaged, global_pool="avg", num_classes=0))
        raw = encode(averaged, standardised(loaded.preprocessing), 3, norm=False)
        expected = layer_norm(averaged, "fc_norm", raw[:, 1:].mean(dim=1))
        torch.testing.assert_close(pooled_of(loaded)[0][:, 1], expected, atol=1e-4, rtol=0)
        assert loaded.heads.head is None

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"global_pool": "map"}, "has global_pool='map': expected 'token', or 'avg'"),
            ({"label_names": ["crow"]}, "names 1 classes, and its head tells 5 apart"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, tmp_path: Path, encoder: State, settings: dict[str, object], message: str
    ) -> None:
        with pytest.raises(WeightsError, match=message):
            load(timm_folder(tmp_path, encoder | linear_head(), **settings))

    def test_a_norm_after_token_pooling_is_refused(self, tmp_path: Path, averaged: State) -> None:
        with pytest.raises(WeightsError, match="expected global_pool='avg' beside an fc_norm"):
            load(timm_folder(tmp_path, averaged | linear_head(), global_pool="token"))


LATER = {"2": "c", "10": "e", "3": "d"}


class TestUpstream:
    @pytest.mark.parametrize("arguments", [{}, {"args": argparse.Namespace(global_pool=True, nb_classes=5)}])
    def test_fine_tuned_by_the_mean(self, tmp_path: Path, averaged: State, arguments: dict[str, object]) -> None:
        state = averaged | linear_head()
        torch.save({"model": state} | arguments, tmp_path / "mae_finetuned.pth")
        loaded = load(tmp_path / "mae_finetuned.pth", heads=(12,))
        images = standardised(loaded.preprocessing)
        require_logits(loaded, logits_of_mean(state, images, heads=12), ("0", "1", "2", "3", "4"))
        assert any("does not name its classes" in note for note in loaded.notes)

    def test_fine_tuned_by_cls(self, tmp_path: Path, encoder: State) -> None:
        state = encoder | linear_head()
        torch.save({"model": state}, tmp_path / "finetuned.pth")
        loaded = load(tmp_path / "finetuned.pth")
        cls = encode(state, standardised(loaded.preprocessing), 3)[:, 0]
        require_logits(loaded, F.linear(cls, state["head.weight"], state["head.bias"]), ("0", "1", "2", "3", "4"))
        assert "its head is taken to read the cls token" in loaded.notes

    def test_a_linear_probe(self, tmp_path: Path, encoder: State) -> None:
        head = {name.replace("head.", "head.1."): tensor for name, tensor in linear_head().items()}
        generator = torch.Generator().manual_seed(5)
        probe = {
            "head.0.running_mean": torch.randn(192, generator=generator),
            "head.0.running_var": torch.rand(192, generator=generator) + 0.1,
            "head.0.num_batches_tracked": torch.tensor(5),
        }
        torch.save({"model": encoder | head | probe}, tmp_path / "linprobe.pth")
        loaded = load(tmp_path / "linprobe.pth")
        cls = encode(encoder, standardised(loaded.preprocessing), 3)[:, 0]
        normed = F.batch_norm(cls, probe["head.0.running_mean"], probe["head.0.running_var"], eps=1e-6)
        require_logits(loaded, F.linear(normed, head["head.1.weight"], head["head.1.bias"]), ("0", "1", "2", "3", "4"))

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            ({"head.norm.weight": torch.ones(192)}, "holds head.norm.weight: expected a linear head, head.weight and "),
            (
                {"head.weight": torch.ones(5, 192), "head.bias": torch.ones(4)},
                r"a head of \[5, 192\] with a bias of \[4\]",
            ),
            (
                {"head.weight": torch.full((5, 192), torch.nan), "head.bias": torch.ones(5)},
                "infinities or NaN in its head",
            ),
            (
                {"head.weight": torch.ones(5, 384), "head.bias": torch.ones(5)},
                "holds a head for vectors 384 wide, and its encoder makes vectors 192 wide",
            ),
            (
                probe_head(384, 384),
                "holds a head for vectors 384 wide, and its encoder makes vectors 192 wide",
            ),
            (
                probe_head(192, 384),
                r"a head of \[5, 192\] with a bias of \[5\] and head.0.running_mean of \[384\] and head.0.running_var",
            ),
            (
                {"head.weight": torch.ones(0, 192), "head.bias": torch.ones(0)},
                "holds a head of 0 classes: expected at least one",
            ),
        ],
    )
    def test_other_heads_are_refused(self, tmp_path: Path, encoder: State, head: State, message: str) -> None:
        torch.save({"model": encoder | head}, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / "other.pth")


@pytest.mark.parametrize("half", [False, True])
def test_our_own_file_keeps_head_and_norm(tmp_path: Path, averaged: State, half: bool) -> None:
    torch.save({"model": averaged | linear_head()}, tmp_path / "mae_finetuned.pth")
    loaded = load(tmp_path / "mae_finetuned.pth")
    save(tmp_path / "ours.safetensors", loaded, half)
    again = load(tmp_path / "ours.safetensors")
    assert again.config == loaded.config and again.config.final_norm == "pooled"
    for heads in (again.heads, read_heads(tmp_path / "ours.safetensors")):
        assert heads.head is not None and loaded.heads.head is not None
        assert heads.head.config == loaded.heads.head.config
        assert np.array_equal(heads.head.weight, loaded.heads.head.weight)
    torch.testing.assert_close(pooled_of(again)[0], pooled_of(loaded)[0], atol=2e-2 if half else 0, rtol=0)


def test_a_file_that_needs_no_new_field_has_none(tmp_path: Path, encoder: State) -> None:
    """So earlier releases, which refuse unknown fields, read it."""
    from safetensors import safe_open

    torch.save({"model": encoder}, tmp_path / "plain.pth")
    save(tmp_path / "ours.safetensors", load(tmp_path / "plain.pth"))
    with safe_open(tmp_path / "ours.safetensors", framework="numpy") as file:
        assert "final_norm" not in file.metadata()["mae-serve"]
