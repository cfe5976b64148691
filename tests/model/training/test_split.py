from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from model.training.run import RunError
from model.training.split import split_images


def zoo(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:02d}.png").touch()
    return root


def test_a_share_of_each_class_is_held_out(tmp_path: Path) -> None:
    folder = zoo(tmp_path / "zoo", ant=20, bear=7, owl=2, yak=1)
    training, validation, _ = split_images(folder, None, 0.25, seed=0)
    assert validation is not None
    assert training.classes == validation.classes == ("ant", "bear", "owl", "yak")
    assert Counter(validation.labels) == {0: 5, 1: 2, 2: 1}
    assert Counter(training.labels) == {0: 15, 1: 5, 2: 1, 3: 1}
    assert not set(training.paths) & set(validation.paths)
    for part in (training, validation):
        assert part.paths == sorted(part.paths)
        assert [Path(path).parent.name for path in part.paths] == [part.classes[label] for label in part.labels]


def test_the_seed_says_which(tmp_path: Path) -> None:
    folder = zoo(tmp_path / "zoo", ant=20, bear=20)
    one, again, other = (split_images(folder, None, 0.25, seed).validation for seed in (0, 0, 1))
    assert one == again != other


def test_a_folder_to_measure_on(tmp_path: Path) -> None:
    folder, other = zoo(tmp_path / "zoo", ant=3, bear=3), zoo(tmp_path / "other", bear=2)
    training, validation, _ = split_images(folder, other, 0.25, seed=0)
    assert len(training.paths) == 6 and validation is not None
    assert (validation.labels, validation.classes) == ([1, 1], ("ant", "bear"))


def test_nothing_held_out(tmp_path: Path) -> None:
    training, validation, _ = split_images(zoo(tmp_path, ant=3, bear=3), None, 0, seed=0)
    assert len(training.paths) == 6 and validation is None


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds one class, 'ant': there is nothing to tell apart"):
        split_images(zoo(tmp_path / "a", ant=3), None, 0.1, 0)
    with pytest.raises(RunError, match="no class has two images"):
        split_images(zoo(tmp_path / "b", ant=1, bear=1), None, 0.5, 0)


def test_what_is_skipped_is_told_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A resumed run splits its images twice."""
    folder, other = zoo(tmp_path / "zoo", ant=3, bear=3), zoo(tmp_path / "other", bear=2)
    (folder / "ant" / "notes.txt").touch()
    (other / "bear" / "notes.txt").touch()
    for validation, count in ((None, 1), (other, 2)):
        split = split_images(folder, validation, 0.25, seed=0)
        assert caplog.messages == []
        split.log_skipped()
        assert len(caplog.messages) == count and all("1 file" in message for message in caplog.messages)
        caplog.clear()
