"""Head and whitening beside the model: written, read back, refused when they do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import Head, Heads, Whitening
from model.checkpoints.heads_file import read_heads
from model.checkpoints.native import METADATA_KEY, HeadConfig, read_metadata
from model.config import Preprocessing
from model.nn.vit import MaskedAutoencoder
from tests.support.engines import SMALL

CLASSES = ("cat", "dog", "zebra crossing")


@pytest.fixture
def heads() -> Heads:
    rng = np.random.default_rng(3)
    head = Head(
        HeadConfig(pool="cls", classes=CLASSES),
        rng.normal(size=(3, 8)).astype(np.float32),
        rng.normal(size=3).astype(np.float32),
    )
    whitening = Whitening(rng.normal(size=8).astype(np.float32), 1e5 * rng.normal(size=(8, 5)).astype(np.float32))
    return Heads(head, {"mean": whitening})


@pytest.fixture
def checkpoint(heads: Heads) -> Checkpoint:
    torch.manual_seed(0)
    tensors = dict(MaskedAutoencoder(SMALL).state_dict())
    return Checkpoint(SMALL, Preprocessing(), "mae-serve", tensors, heads=heads)


@pytest.mark.parametrize("half", [False, True])
def test_they_come_back_to_the_bit_whatever_the_weights_precision(
    checkpoint: Checkpoint, tmp_path: Path, half: bool
) -> None:
    path = tmp_path / "model.safetensors"
    save(path, checkpoint, half=half)
    for read in (load(path).heads, read_heads(path)):
        assert read.head is not None
        assert read.head.config == HeadConfig(pool="cls", classes=CLASSES)
        assert set(read.whitening) == {"mean"}
        for name, array in checkpoint.heads.arrays().items():
            np.testing.assert_array_equal(read.arrays()[name], array)
    assert load(path).tensors.keys() == checkpoint.tensors.keys()


def test_a_model_without_them_has_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, replace(checkpoint, heads=Heads()))
    assert read_heads(path) == Heads()
    assert load(path).heads == Heads()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head.weight", None, "lacks head.weight"),
        ("head.bias", torch.zeros(4), "head.bias"),
        ("head.weight", torch.zeros(3, 16), r"holds head.weight as \[3, 16\]: expected finite \[3, 8\]"),
        ("head.weight", torch.full((3, 8), torch.nan), "head.weight"),
        ("whitening.mean.centre", None, "lacks whitening.mean.centre"),
        ("whitening.mean.matrix", torch.zeros(7, 5), "whitening.mean.matrix"),
        ("whitening.max.matrix", torch.zeros(8, 5), "whitening.max.matrix"),
    ],
)
def test_what_does_not_fit_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, name: str, change: torch.Tensor | None, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save(path, checkpoint)
    metadata = read_metadata(path)
    assert metadata is not None
    tensors = load_file(path)
    tensors.pop(name, None)
    if change is not None:
        tensors[name] = change
    save_file(tensors, path, {METADATA_KEY: metadata.model_dump_json()})
    with pytest.raises(WeightsError, match=message):
        read_heads(path)
    with pytest.raises(WeightsError, match=message):
        load(path)


def test_a_head_without_classes_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, checkpoint)
    metadata = read_metadata(path)
    assert metadata is not None and metadata.head is not None
    description = metadata.model_dump()
    description["head"]["classes"] = []
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(description)})
    for read in (read_heads, load):
        with pytest.raises(WeightsError, match="a head of 0 classes: expected at least one"):
            read(path)


def test_probabilities_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 8)).astype(np.float32), rng.integers(3, size=60)
    oracle = LogisticRegression().fit(vectors, labels)
    head = Head(
        HeadConfig(pool="mean", classes=CLASSES),
        oracle.coef_.astype(np.float32),
        oracle.intercept_.astype(np.float32),
    )
    np.testing.assert_allclose(head.probabilities(vectors), oracle.predict_proba(vectors), atol=1e-5)
    assert np.isfinite(head.probabilities(1e4 * vectors)).all()


def test_whitening_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + 50).astype(np.float32)
    oracle = PCA(whiten=True).fit(vectors.astype(np.float64))
    matrix = oracle.components_.T / np.sqrt(oracle.explained_variance_)
    whitening = Whitening(oracle.mean_.astype(np.float32), matrix.astype(np.float32))
    np.testing.assert_allclose(whitening.apply(vectors), oracle.transform(vectors), atol=1e-3)
