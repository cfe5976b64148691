"""The memory bank: distances beside scipy's, thresholds by hand, and its place in a file of weights."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats
from scipy.spatial.distance import cdist

from model.checkpoints.checkpoint import load
from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import Heads
from model.checkpoints.heads_file import read_heads
from model.checkpoints.locate import locate
from model.checkpoints.memory_bank import MemoryBank
from model.checkpoints.native import METADATA_KEY, read_metadata
from model.evaluation.store import store_heads
from tests.support.engines import write_narrow

RNG = np.random.default_rng(0)


def bank(scores: np.ndarray | list[float]) -> MemoryBank:
    return MemoryBank(np.ones((3, 32), np.float32), np.array(scores, np.float32), 32)


def test_distances() -> None:
    tokens, stored = RNG.normal(size=(20, 32)).astype("f4"), RNG.normal(size=(50, 32)).astype("f4")
    wanted = cdist(tokens, stored).min(axis=1)
    np.testing.assert_allclose(MemoryBank(stored, np.ones(2, "f4"), 32).distances(tokens), wanted, rtol=1e-5)
    near = stored[:20] + 1e-4 * tokens  # products of float32 would lose such distances
    np.testing.assert_allclose(
        MemoryBank(stored, np.ones(2, "f4"), 32).distances(near), cdist(near, stored).min(axis=1), rtol=1e-3
    )


def test_the_threshold_is_a_score_where_there_are_enough() -> None:
    hundred = bank(np.arange(1, 100))  # 99 scores: the 95th of them leaves 5 of 100 places above it
    assert hundred.threshold(0.05) == 95
    assert hundred.threshold(0.5) == 50
    assert hundred.threshold(0.01) == 99


def test_the_threshold_is_extrapolated_where_there_are_too_few() -> None:
    scores = np.sort(np.exp(RNG.normal(1, 0.2, 20))).astype(np.float32)
    logarithms = np.log(scores.astype(float))
    wanted = np.exp(stats.norm.ppf(0.999, logarithms.mean(), logarithms.std(ddof=1) * np.sqrt(1 + 1 / 20)))
    assert np.isclose(bank(scores).threshold(0.001), wanted, rtol=1e-5)
    assert bank([0, 0]).threshold(0.001) == pytest.approx(1e-9)  # images without any difference
    outlier = bank([1, 1, 1, 1, 1, 1, 1, 1, 1, 50])
    assert outlier.threshold(0.09) >= 50


def test_the_share_of_false_alarms() -> None:
    alarms = []
    for _ in range(3000):
        *scores, new = np.exp(RNG.normal(size=20))
        alarms.append(new > bank(np.sort(scores)).threshold(0.1))
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.02)


def test_a_file_of_weights_keeps_the_bank(tmp_path: Path) -> None:
    weights, output = write_narrow(tmp_path), tmp_path / "out.safetensors"
    fitted = MemoryBank(RNG.normal(size=(7, 32)).astype("f4"), np.array([1, 2, 3], "f4"), 32)
    store_heads(locate(str(weights), None), output, lambda heads: Heads(memory_bank=fitted))
    for read in (read_heads(output).memory_bank, load(output).heads.memory_bank):
        assert read is not None
        np.testing.assert_array_equal(read.tokens, fitted.tokens)
        np.testing.assert_array_equal(read.scores, fitted.scores)
        assert read.image_size == 32
    assert read_heads(weights).memory_bank is None
    assert load(output).tensors.keys() == load(weights).tensors.keys()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"memory_bank.tokens": np.ones((3, 31), "f4")}, "holds memory_bank.tokens as"),
        ({"memory_bank.tokens": np.full((3, 32), np.nan, "f4")}, "expected finite"),
        ({"memory_bank.tokens": np.ones((0, 32), "f4")}, "without tokens"),
        ({"memory_bank.scores": np.array([2, 1], "f4")}, "ascending"),
        ({"memory_bank.scores": np.array([2], "f4")}, "two ascending scores"),
        ({"memory_bank.scores": None}, "lacks memory_bank.scores"),
        ({"memory_bank.more": np.ones(1, "f4")}, "does not explain"),
    ],
)
def test_a_damaged_bank_is_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], sentence: str) -> None:
    weights, output = write_narrow(tmp_path), tmp_path / "out.safetensors"
    store_heads(locate(str(weights), None), output, lambda heads: Heads(memory_bank=bank([1, 2])))
    metadata = read_metadata(output)
    assert metadata is not None
    arrays = {name: array for name, array in (load_file(output) | changes).items() if array is not None}
    save_file(arrays, output, {METADATA_KEY: metadata.model_dump_json()})
    with pytest.raises(WeightsError, match=sentence):
        read_heads(output)
