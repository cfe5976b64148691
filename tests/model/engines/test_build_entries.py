"""The entries that an engine is built of: what makes another entry, and an altered or damaged one never serves."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoints import checkpoint
from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import PACKAGED
from model.engines import context
from model.engines.base import Engine
from model.engines.build import build
from model.engines.entry import read_reference
from model.engines.openvino import entries as openvino_entries
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.outputs import collect_outputs
from model.engines.parity import TOLERANCES, ParityError, measure_parity
from model.engines.settings import EngineSettings
from tests.support.engines import write_fresh

# --- entries that were altered or damaged


def vector_of(probe: Path, name: str) -> np.ndarray:
    """A one-dimensional weight of the probe model, which OpenVINO keeps as it is."""
    tensors = checkpoint.load(probe).tensors
    return tensors[name].numpy()


def alter(cache: Path, probe: Path, graph: str, weight: str, change: Callable[[np.ndarray], None]) -> Path:
    """Changes a weight inside the compiled graph of a cache's only entry, which then looks whole."""
    (entry,) = cache.glob("openvino-*")
    path = entry / f"{graph}.bin"
    content = path.read_bytes()
    found = vector_of(probe, weight)
    assert content.count(found.tobytes()) == 1
    changed = found.copy()
    change(changed)
    path.write_bytes(content.replace(found.tobytes(), changed.tobytes()))
    manifest = entry / "manifest.json"
    digests = json.loads(manifest.read_text())
    digests["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(digests))
    return entry


@pytest.fixture
def probe_cache(openvino_engine: Engine, engine_cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache with the probe model's entry alone."""
    name = str(openvino_engine.info.entry)
    shutil.copytree(engine_cache / name, tmp_path / "cache" / name)
    return tmp_path / "cache"


def add(index: int, amount: float) -> Callable[[np.ndarray], None]:
    def change(weight: np.ndarray) -> None:
        weight[index] += amount

    return change


@pytest.mark.parametrize(
    ("graph", "weight", "index", "amount", "message"),
    [
        ("encoder", "blocks.2.mlp.fc1.bias", 5, 1.0, "embeddings differ"),
        ("encoder", "norm.bias", 7, 0.1, "embeddings differ"),  # which shifts all vectors by the same amount
        ("encoder", "blocks.11.mlp.fc2.bias", 3, float("nan"), "embeddings differ"),
        ("decoder", "decoder_blocks.0.mlp.fc1.bias", 9, 1.0, "reconstruct"),
        ("decoder", "decoder_pred.bias", 100, 2.0, "reconstruct"),
        ("decoder", "decoder_norm.weight", 3, float("nan"), "reconstruct"),
    ],
)
def test_one_weight_that_was_changed_keeps_the_engine_from_serving(
    probe_cache: Path, probe: Path, graph: str, weight: str, index: int, amount: float, message: str
) -> None:
    alter(probe_cache, probe, graph, weight, add(index, amount))
    with pytest.raises(ParityError, match=message):
        build(EngineSettings(engine_cache=probe_cache, weights=str(probe), backend="openvino", precision="fp32"))


def test_plain_cosine_would_have_let_a_changed_weight_pass(
    openvino_engine: Engine, probe: Path, probe_cache: Path
) -> None:
    entry = alter(probe_cache, probe, "encoder", "blocks.2.mlp.fc1.bias", add(5, 1.0))
    found, expected = collect_outputs(OpenVINOEngine(entry, openvino_engine.info)), read_reference(entry)
    a, b = found.whole.astype(np.float64), expected.whole.astype(np.float64)
    plain = ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min()
    bar = TOLERANCES["fp32"].cosine
    assert plain > bar
    assert measure_parity(found, expected, openvino_engine.info.config).cosine < 0.9999 < bar


def test_an_entry_that_was_damaged_is_converted_again(
    probe: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = probe_cache.glob("openvino-*")
    good = shutil.copytree(entry, probe_cache.parent / "good")
    os.truncate(entry / "encoder.bin", 1000)
    converted = []

    def convert(job: Any, folder: Path, progress: Any, deadline: Any) -> None:
        converted.append(job)
        shutil.copytree(good, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()

    monkeypatch.setattr(context, "convert_in_child", convert)
    spec = EngineSettings(
        engine_cache=probe_cache, weights=str(probe), backend="openvino", precision="fp32", max_batch=4
    )
    for _ in range(2):
        assert build(spec).info.parity is not None
    assert len(converted) == 1


# --- the entries' names


class Converted(Exception):
    """Instead of a conversion; carries the name of the entry that would have been made."""


@pytest.fixture
def entry_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    def convert(job: Any, folder: Path, progress: Any, deadline: Any) -> None:
        raise Converted(folder.name.rpartition("-")[0])

    def entry(**spec: Any) -> str:
        monkeypatch.setattr(context, "convert_in_child", convert)
        monkeypatch.setattr(openvino_entries, "find_packaged", lambda *of: None)
        with pytest.raises(Converted) as made:
            build(EngineSettings(**{"engine_cache": tmp_path / "cache", "backend": "openvino"} | spec))
        return str(made.value)

    return entry


def test_whatever_changes_the_graphs_makes_another_entry(
    entry_of: Callable[..., str], tmp_path: Path, narrow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(write_fresh(tmp_path / "other.safetensors", seed=1))
    entries = [
        entry_of(weights=narrow),
        entry_of(weights=other),
        entry_of(weights=narrow, image_size=64),
        entry_of(weights=narrow, preprocess={"resize": "squash"}),
        entry_of(weights=narrow, preprocess={"mean": [0, 0, 0]}),
        entry_of(weights=narrow, norm_pix_loss=True),
        entry_of(weights=narrow, norm_pix_loss=False),
        entry_of(weights=narrow, heads=(4,)),
        entry_of(weights=narrow, heads=(4, 4)),
        entry_of(weights=narrow, model="mae_tiny"),
    ]
    for what in ("version", "code_digest"):
        with monkeypatch.context() as changed:
            changed.setattr(openvino_entries, what, lambda *name: "another")
            entries.append(entry_of(weights=narrow))
    assert len(set(entries)) == len(entries)


def test_what_does_not_change_the_graphs_does_not(entry_of: Callable[..., str], tmp_path: Path, narrow: str) -> None:
    moved = shutil.copy(narrow, tmp_path / "moved.safetensors")
    entries = {
        entry_of(weights=narrow),
        entry_of(weights=str(moved)),
        entry_of(weights=narrow, engine_cache=tmp_path / "elsewhere"),
        entry_of(weights=narrow, lanes=7, max_batch=3, precision="bf16"),
    }
    assert len(entries) == 1


def test_a_model_named_is_the_same_as_by_default(entry_of: Callable[..., str], tmp_path: Path, narrow: str) -> None:
    default = PACKAGED / "mae_tiny.safetensors"
    assert len({entry_of(), entry_of(model="mae_tiny"), entry_of(weights=str(default), model="mae_tiny")}) == 1
    # these weights are not the preset's: whoever reads them must see that
    with pytest.raises(WeightsError, match="is not mae_tiny"):
        build(EngineSettings(engine_cache=tmp_path / "cache", weights=narrow, model="mae_tiny", backend="torch"))
