"""Whether there is to be a joined lane, and that it gives every image the bits of the other lanes."""

from pathlib import Path

import numpy as np
import pytest

from model.engines.base import ServedModel, gather_visible
from model.engines.build import build
from model.engines.measure import finish_measurement
from model.engines.openvino import joined_lane as module
from model.engines.openvino.arithmetic import sample_precision
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.openvino.joined_lane import usable_memory, wants_joined_lane
from model.engines.settings import EngineSettings
from tests.support.conversion import conversions_in_process


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five MB of constants, on a machine with 100 MB."""
    (tmp_path / "encoder.bin").write_bytes(bytes(4_000_000))
    (tmp_path / "decoder.bin").write_bytes(bytes(1_000_000))
    (tmp_path / "encoder.xml").write_bytes(bytes(1_000_000))
    monkeypatch.setattr(module, "usable_memory", lambda: 100e6)
    return tmp_path


def test_it_is_made_where_a_twentieth_of_the_memory_holds_the_constants(graphs: Path) -> None:
    assert wants_joined_lane("auto", 2, graphs)
    (graphs / "decoder.bin").write_bytes(bytes(1_000_001))
    assert not wants_joined_lane("auto", 2, graphs)
    assert wants_joined_lane("on", 2, graphs)


def test_it_can_be_turned_off_and_one_lane_has_nothing_to_join(graphs: Path) -> None:
    assert not wants_joined_lane("off", 2, graphs)
    assert not wants_joined_lane("auto", 1, graphs) and not wants_joined_lane("on", 1, graphs)


def test_the_limit_of_the_cgroup_counts(tmp_path: Path) -> None:
    newer, older = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    machine = usable_memory((newer, older))
    assert machine > 1e8
    newer.write_text("max\n")
    older.write_text("9223372036854771712\n")
    assert usable_memory((newer, older)) == machine
    newer.write_text("1000000\n")
    assert usable_memory((newer, older)) == 1e6


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def served(request: pytest.FixtureRequest, engine_cache: Path, probe: Path) -> ServedModel:
    """The probe model on two lanes, before its lanes are joined."""
    if request.param == "bf16" and sample_precision("bf16") != "bf16":
        pytest.skip("the same bits are promised for native bf16 alone")
    settings = EngineSettings(
        engine_cache=engine_cache,
        weights=str(probe),
        backend="openvino",
        precision=request.param,
        lanes=2,
        max_batch=1,
        joined_lane="on",
    )
    with conversions_in_process():
        return build(settings)


@pytest.mark.converts
def test_an_image_gets_the_same_bits_on_the_joined_lane(
    served: ServedModel, golden_patches: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    engine = served.engine
    assert isinstance(engine, OpenVINOEngine) and not engine.info.joined
    finish_measurement(served)  # makes the lane
    info = engine.info
    if info.computes == "bf16" and "other bits than the other lanes" in caplog.text:
        assert not info.joined
        pytest.skip("in bf16, this CPU's kernels give other bits on more threads")
    assert info.joined and info.batch_curves is not None and info.joined_mb is not None
    assert set(info.batch_curves.shapes["embed whole"].joined) == {1}
    for visible in (1, 49, 196):
        generator = np.random.default_rng(visible)
        places = np.stack([np.sort(generator.permutation(196)[:visible]) for _ in range(8)]).astype(np.int32)
        for size in (1, 2, 3, 5, 8):
            images, seen = golden_patches[:size], places[:size]
            patches = gather_visible(images, seen)
            assert np.array_equal(engine.tokens(0, patches, seen), engine.tokens(2, patches, seen)), (visible, size)
            if visible < 196:
                both = zip(engine.reconstruct(1, images, seen), engine.reconstruct(2, images, seen), strict=True)
                assert all(np.array_equal(*outputs) for outputs in both), (visible, size)
