"""Folders of images and of classes."""

import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from model.images.folders import (
    ClassFolderError,
    LabelledImages,
    LeftOut,
    find_images,
    images_with_or_without_classes,
    labelled_images,
)
from model.images.open_image import open_image
from model.images.packs import open_image_file, read_image_file


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    root = tmp_path / "zoo"
    touch(root, "owl/b.png", "owl/a.JPG", "bear/black/1.webp", "bear/2.tif", "ant/.hidden/x.png", "owl/notes.txt")
    return root


def names(root: Path, paths: list[str]) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in paths]


def test_a_class_is_a_folder_with_all_that_is_in_it(zoo: Path) -> None:
    labelled = labelled_images(zoo)
    assert labelled.classes == ("bear", "owl")
    assert list(zip(names(zoo, labelled.paths), labelled.labels, strict=True)) == [
        ("bear/2.tif", 0),
        ("bear/black/1.webp", 0),
        ("owl/a.JPG", 1),
        ("owl/b.png", 1),
    ]
    assert labelled.left_out == LeftOut(hidden=1, formats=Counter({".txt": 1}))


def test_hidden_and_system_folders_are_no_classes(tmp_path: Path) -> None:
    hidden = ("owl/.ipynb_checkpoints/x.jpg", ".thumbnails/x.jpg", "owl/._a.jpg", ".DS_Store")
    system = ("__MACOSX/owl/x.jpg", "@eaDir/x.jpg", "newt/#recycle/x.jpg")
    touch(tmp_path, "owl/a.jpg", "newt/a.jpg", *hidden, *system)
    labelled = labelled_images(tmp_path)
    assert labelled.classes == ("newt", "owl") and names(tmp_path, labelled.paths) == ["newt/a.jpg", "owl/a.jpg"]
    assert labelled.left_out.sentence == "left out: 7 hidden or system entries"


def test_a_hidden_folder_that_is_named_is_searched(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/a.jpg")
    assert find_images([tmp_path / ".cache"]).images == [str(tmp_path / ".cache" / "a.jpg")]


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    touch(tmp_path, "zoo/owl/a.jpg", "elsewhere/b.jpg", "elsewhere/deep/c.jpg", "single.jpg")
    (zoo / "newt").symlink_to(tmp_path / "elsewhere")
    (zoo / "owl" / "d.jpg").symlink_to(tmp_path / "single.jpg")
    labelled = labelled_images(zoo)
    assert names(zoo, labelled.paths) == ["newt/b.jpg", "newt/deep/c.jpg", "owl/a.jpg", "owl/d.jpg"]
    assert labelled.classes == ("newt", "owl") and not labelled.left_out.sentence


def test_a_link_to_a_folder_that_it_is_in_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "beside").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "beside").symlink_to(tmp_path / "a")
    found = find_images([tmp_path])
    assert names(tmp_path, found.images) == ["a/1.jpg", "a/beside/2.jpg", "b/2.jpg", "b/beside/1.jpg"]
    assert found.left_out.loops == 4 and found.left_out.sentence == "left out: 4 links in a loop"


def test_formats_that_are_not_read_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.CR3", "c.cr3", "d.dng", "e", "f.jpeg?w=3")
    left_out = find_images([tmp_path]).left_out
    assert left_out.sentence == (
        "left out: 5 files of formats that are not read (2 .cr3, 1 .dng, 1 without a suffix, 1 .jpeg?w=3)"
    )
    touch(tmp_path, "g.x", "h.y", "i.z")
    assert ", …)" in find_images([tmp_path]).left_out.sentence
    with pytest.raises(ClassFolderError, match=r"holds no images; left out: 1 file of formats .* \(1 \.cr3\)"):
        touch(tmp_path / "phone", "cat/a.cr3")
        labelled_images(tmp_path / "phone")


def test_without_the_extra_heic_is_left_out_and_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.images.open_image.can_read_heif", lambda: False)
    touch(tmp_path, "a.jpg", "b.HEIC")
    hint = "1 .heic, which needs pillow-heif: pip install pillow-heif"
    assert find_images([tmp_path]).left_out.sentence == f"left out: 1 file of formats that are not read ({hint})"


def test_a_second_folder_is_numbered_like_the_first(zoo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "owl" / "c.png"
    touch(other.parent, "c.png")
    classes = labelled_images(zoo).classes
    assert labelled_images(other.parents[1], classes) == LabelledImages([str(other)], [1], classes, [], LeftOut())
    touch(other.parents[1], "newt/d.png")
    with pytest.raises(ClassFolderError, match=r"d\.png is of the class 'newt', which is not among the 2 known ones"):
        labelled_images(other.parents[1], classes)


def test_a_relative_folder(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory, folder in ((zoo.parent, "zoo"), (zoo.parent, "./zoo/"), (zoo, ".")):
        monkeypatch.chdir(directory)
        assert labelled_images(Path(folder)).classes == ("bear", "owl")


def test_images_that_lie_in_no_class_are_one_class_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "plain/b.png", "plain/a.png")
    monkeypatch.chdir(tmp_path)
    plain = images_with_or_without_classes(Path("plain"))
    assert (plain.paths, plain.labels, plain.classes) == (["plain/a.png", "plain/b.png"], [0, 0], ("plain",))
    touch(tmp_path, "plain/owl/c.png")
    with pytest.raises(ClassFolderError, match=r"a\.png lies in no class"):
        images_with_or_without_classes(Path("plain"))


def test_what_is_no_folder_of_classes_is_refused(zoo: Path, tmp_path: Path) -> None:
    (zoo / "stray.png").touch()
    with pytest.raises(ClassFolderError, match=r"stray\.png lies in no class"):
        labelled_images(zoo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClassFolderError, match=r"holds no images$"):
        labelled_images(tmp_path / "empty")
    with pytest.raises(NotADirectoryError):
        labelled_images(zoo / "stray.png")
    with pytest.raises(FileNotFoundError):
        labelled_images(zoo / "nowhere")


def test_only_regular_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "owl/a.jpg")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("owl/pipe.jpg")
    os.mkfifo("owl/pipe")
    os.symlink("pipe", "owl/link.png")
    os.symlink("/dev/null", "owl/null.png")
    os.symlink("nowhere", "owl/broken.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("owl/socket.jpg")
    found = find_images([Path("owl")])
    assert found.images == ["owl/a.jpg", "owl/broken.png"]
    assert found.left_out.sentence == "left out: 3 FIFOs, 1 device, 1 socket"
    assert find_images([Path("owl/a.jpg"), Path("owl/pipe.jpg"), Path("owl/null.png")])[:2] == (
        ["owl/a.jpg"],
        [
            ("owl/pipe.jpg", "it is a FIFO and no regular file"),
            ("owl/null.png", "it is a device and no regular file"),
        ],
    )


@pytest.mark.parametrize("read", [open_image, open_image_file, read_image_file])
@pytest.mark.parametrize("is_late", [False, True], ids=["before", "replaced-meanwhile"])
def test_a_fifo_is_refused_and_not_waited_for(
    tmp_path: Path, read: Callable[[str], object], is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "a.jpg"
    os.mkfifo(fifo)
    if is_late:  # what is looked at first is still a file
        touch(tmp_path, "file.jpg")
        status = os.stat(tmp_path / "file.jpg")
        monkeypatch.setattr("model.images.regular_file.os.stat", lambda path: status)
    with pytest.raises((ValueError, OSError), match="it is a FIFO and no regular file"):
        read(str(fifo))
