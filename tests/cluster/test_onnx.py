"""Exported ONNX files, as ONNX Runtime runs them: what this project computes, for every batch and every K."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.native import Metadata
from model.config import Preprocessing
from model.engines.export import DECODER, ENCODER, build_graphs
from model.export.contents import ExportError
from model.export.folder import export
from tests.support.exported import (
    CLASSES,
    RESNET,
    chelsea_square,
    difference,
    drawn,
    logits_of,
    pooled_of,
    run_card,
    squares_of,
)

MODELS: Mapping[str, dict[str, Any]] = {
    "vit": {"head": "cls", "others": True},
    "normalised pixels": {
        "norm_pix_loss": True,
        "positions": "learned",
        "preprocessing": Preprocessing(resize="squash"),
    },
    "norm of the mean": {"head": "mean", "final_norm": "pooled", "decoder_depth": 0},
    "resnet": {**RESNET, "head": "mean"},
}
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A model, and the folder with its files."""
    checkpoint, folder = drawn(**MODELS[request.param]), tmp_path_factory.mktemp("onnx") / "out"
    export(checkpoint, "onnx", folder)
    return checkpoint, folder


def run(path: Path, inputs: Mapping[str, Any]) -> Arrays:
    """All outputs of a graph, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: np.asarray(x) for name, x in inputs.items()}), strict=True))


def test_pixels_become_vectors(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    squares = squares_of(checkpoint)
    for count in (3, 1):
        arrays = run(folder / "embed.onnx", {"images": squares[:count]})
        pooled = pooled_of(checkpoint, squares[:count])
        assert difference(arrays.pop("mean"), pooled[:, 1]) < 1e-5
        if checkpoint.config.has_cls:
            assert difference(arrays.pop("cls"), pooled[:, 0]) < 1e-5
        for pool, whitening in checkpoint.heads.whitening.items():
            expected = whitening.apply(pooled[:, ("cls", "mean").index(pool)].numpy())
            assert difference(arrays.pop(f"{pool}_whitened"), expected) < 1e-5
        if checkpoint.heads.head is not None:
            assert difference(arrays.pop("logits"), logits_of(checkpoint, squares[:count])) < 1e-5
        assert not arrays


@pytest.mark.parametrize(("batch", "k"), [(1, 16), (4, 5), (3, 1)])
def test_visible_patches_become_vectors_and_pixels(exported: tuple[Checkpoint, Path], batch: int, k: int) -> None:
    checkpoint, folder = exported
    rng = np.random.default_rng(0)
    graphs = build_graphs(checkpoint, checkpoint.config, checkpoint.preprocessing)
    patches = rng.integers(0, 256, (batch, 16, 192), dtype=np.uint8)
    visible_indices = np.stack([np.sort(rng.permutation(16)[:k]) for _ in range(batch)]).astype(np.int32)
    visible = np.take_along_axis(patches, visible_indices[..., None], axis=1)
    ours = graphs[ENCODER](torch.from_numpy(visible), torch.from_numpy(visible_indices))
    theirs = run(folder / "encoder.onnx", {"patches": visible, "visible_indices": visible_indices})
    assert difference(theirs["pooled"], ours[0]) < 1e-5
    assert difference(theirs["latent"], ours[1]) < 1e-5
    if not checkpoint.config.has_decoder:
        assert not (folder / "decoder.onnx").exists()
        return
    restore_indices = np.zeros((batch, 16), dtype=np.int32)
    np.put_along_axis(restore_indices, visible_indices, np.arange(2, k + 2, dtype=np.int32)[None], axis=1)
    inputs = {"latent": theirs["latent"], "restore_indices": restore_indices, "patches": patches}
    pixels, error = graphs[DECODER](*(torch.from_numpy(x) for x in inputs.values()))
    theirs = run(folder / "decoder.onnx", inputs)
    assert theirs["pixels"].dtype == np.uint8
    assert np.abs(theirs["pixels"].astype(int) - pixels.numpy()).max() <= 1
    assert difference(theirs["error"], error) < 1e-5


def test_the_golden_numbers(probe: Path, golden: Any, tmp_path: Path) -> None:
    export(load(probe), "onnx", tmp_path / "out")
    arrays = run(tmp_path / "out" / "embed.onnx", {"images": golden["images"]})
    for pool in ("cls", "mean"):
        assert np.abs(arrays[pool] - golden[f"embed_{pool}"]).max() < 1e-4


def test_the_files_describe_themselves(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        file = onnx.load_from_string(content)
        onnx.checker.check_model(file, full_check=True)
        properties = {entry.key: entry.value for entry in file.metadata_props}
        assert properties["license"] == "CC BY 4.0"
        described = Metadata.model_validate_json(properties["mae-serve"])
        assert (described.config, described.preprocessing) == (checkpoint.config, checkpoint.preprocessing)
        if checkpoint.heads.head is not None:
            assert json.loads(properties["classes"]) == list(CLASSES)
        assert [(o.domain, o.version) for o in file.opset_import] == [("", 18)]
        axes = {d.dim_param for value in file.graph.input for d in value.type.tensor_type.shape.dim} - {""}
        expected = {"embed": {"batch"}, "encoder": {"batch", "visible"}, "decoder": {"batch", "tokens"}}
        assert axes == expected[path.stem]
        for secret in (b"stack_trace", b"site-packages", str(folder.parent).encode()):
            assert secret not in content


def test_the_memory_bank_lies_beside_the_graphs(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    bank, path = checkpoint.heads.memory_bank, folder / "heads.safetensors"
    assert path.exists() == (bank is not None)
    if bank is not None:
        with safe_open(path, framework="numpy") as file:
            assert set(file.keys()) == {"memory_bank.tokens", "memory_bank.scores"}
            assert np.array_equal(file.get_tensor("memory_bank.tokens"), bank.tokens)


def test_the_code_of_the_card(exported: tuple[Checkpoint, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, folder = exported
    monkeypatch.chdir(folder)
    theirs = run_card(folder)
    square = chelsea_square(checkpoint)
    assert np.array_equal(np.asarray(theirs["square"])[None], square)
    head = checkpoint.heads.head
    expected = pooled_of(checkpoint, square)[:, 1] if head is None else logits_of(checkpoint, square)
    assert difference(theirs["vectors"], expected) < 1e-5


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refused:
        export(drawn(), "onnx", tmp_path / "out", half=True)
    assert str(refused.value) == "--half is not for --to onnx: its graphs compute in float32"
