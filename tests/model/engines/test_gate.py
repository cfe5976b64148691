"""The gate: an engine that does not compute what the model computes must not serve."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.engines.build import EngineSpec, build
from model.engines.parity import ParityError


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_one_weight_changed_in_a_compiled_graph_stops_the_start(engine_cache: Path, tmp_path: Path, graph: str) -> None:
    build(EngineSpec(cache=engine_cache, backend="openvino"))
    cache = tmp_path / "cache"
    shutil.copytree(engine_cache, cache)
    assert build(EngineSpec(cache=cache, backend="openvino")).info.parity is not None
    for changed in cache.glob(f"openvino-*/{graph}.bin"):
        weights = np.fromfile(changed, dtype=np.float32)
        weights[len(weights) // 2] = 100.0
        weights.tofile(changed)
        manifest = changed.with_name("manifest.json")
        digest = hashlib.sha256(changed.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {changed.name: digest}))
    with pytest.raises(ParityError, match="differ"):
        build(EngineSpec(cache=cache, backend="openvino"))
