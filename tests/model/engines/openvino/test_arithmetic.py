"""What OpenVINO really computes under a hint, at each level of instructions that this CPU reaches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.engines.build import build
from model.engines.fixed_images import fixed_patches
from model.engines.openvino.arithmetic import sample_precision
from model.engines.settings import EngineSettings
from tests.support.instructions import LEVELS, cpu_flags, environment_of, expected_bf16

needs_avx512 = pytest.mark.skipif("avx512bw" not in cpu_flags(), reason="levels can be limited on a CPU with AVX-512")


@pytest.mark.live
@needs_avx512
@pytest.mark.parametrize("level", [*LEVELS, None])
def test_emulated_bf16_is_told_from_bf16_at_every_level(level: str | None) -> None:
    if level and LEVELS[level][0] not in cpu_flags():
        pytest.skip(f"this CPU does not reach {level}")
    script = (
        "from model.engines.openvino.arithmetic import sample_precision as of; print(of('bf16'), of('fp32'), sep=';')"
    )
    own = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    child = subprocess.run(
        [sys.executable, "-c", script],
        env=own | (environment_of(level) if level else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == f"{expected_bf16(level)};fp32"


@needs_avx512
def test_this_process_is_told_the_same() -> None:
    assert sample_precision("bf16") == expected_bf16(os.environ.get("ONEDNN_MAX_CPU_ISA"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_engine_says_what_it_computes(
    precision: str, narrow_graphs: Path, narrow_weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And does so: its numbers are float32's own where it says float32, and others where it says something else."""
    expected = sample_precision(precision)  # type: ignore[arg-type]
    if expected is None:
        pytest.skip("OpenVINO has no kernel for it here")
    spec = EngineSettings(
        engine_cache=narrow_graphs.parent, weights=str(narrow_weights), backend="openvino", lanes=1, max_batch=4
    )
    made = {name: build(spec.model_copy(update={"precision": name})).engine for name in ("fp32", precision)}
    info = made[precision].info
    assert (info.precision, info.computes) == (precision, expected)
    assert caplog.text.count(f"PRECISION={precision}: OpenVINO computes {expected} on this CPU") == (
        0 if expected == precision else 1
    )
    patches = fixed_patches(info.config)
    everywhere = np.tile(np.arange(16, dtype=np.int32), (len(patches), 1))
    exact, vectors = (engine.embed(0, patches, everywhere) for engine in made.values())
    assert np.array_equal(exact, vectors) == (expected == "fp32")
