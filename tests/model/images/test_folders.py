"""Folders of classes."""

from pathlib import Path

import pytest

from model.images.folders import ClassFolderError, LabelledImages, labelled_images


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    root = tmp_path / "zoo"
    for name in ("owl/b.png", "owl/a.JPG", "bear/black/1.webp", "bear/2.tif", "ant/.hidden/x.png", "owl/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_an_images_class_is_its_own_folder(zoo: Path) -> None:
    labelled = labelled_images(zoo)
    assert labelled.classes == ("ant/.hidden", "bear", "bear/black", "owl")
    assert [(Path(path).relative_to(zoo).as_posix(), label) for path, label in zip(*labelled[:2], strict=True)] == [
        ("ant/.hidden/x.png", 0),
        ("bear/2.tif", 1),
        ("bear/black/1.webp", 2),
        ("owl/a.JPG", 3),
        ("owl/b.png", 3),
    ]


def test_a_second_folder_is_numbered_like_the_first(zoo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "owl" / "c.png"
    other.parent.mkdir(parents=True)
    other.touch()
    classes = labelled_images(zoo).classes
    assert labelled_images(other.parents[1], classes) == LabelledImages([str(other)], [3], classes, [])
    (other.parents[1] / "newt").mkdir()
    (other.parents[1] / "newt" / "d.png").touch()
    with pytest.raises(ClassFolderError, match=r"d\.png is of the class 'newt', which is not among the 4 known ones"):
        labelled_images(other.parents[1], classes)


def test_a_relative_folder(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory, folder in ((zoo.parent, "zoo"), (zoo.parent, "./zoo/"), (zoo, ".")):
        monkeypatch.chdir(directory)
        assert labelled_images(Path(folder)).classes == ("ant/.hidden", "bear", "bear/black", "owl")


def test_what_is_no_folder_of_classes_is_refused(zoo: Path, tmp_path: Path) -> None:
    (zoo / "stray.png").touch()
    with pytest.raises(ClassFolderError, match=r"stray\.png lies in no class"):
        labelled_images(zoo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClassFolderError, match="holds no images"):
        labelled_images(tmp_path / "empty")
    with pytest.raises(NotADirectoryError):
        labelled_images(zoo / "stray.png")
    with pytest.raises(FileNotFoundError):
        labelled_images(zoo / "nowhere")
