"""Files, folders, patterns and packs on the disk."""

import os
from pathlib import Path

import pytest

from service.cli.errors import CommandError
from service.cli.image_sources.listing import Listing, require_images


@pytest.fixture(autouse=True)
def _photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `photographs` with images in two folders, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("photographs/b.jpg", "photographs/a.png", "photographs/deep/c.jpg", "photographs/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def paths(*arguments: str) -> list[str]:
    return [entry.path for entry in Listing(arguments)]


def test_a_folder_is_searched_at_any_depth() -> None:
    listing = Listing(["photographs"])
    entries = list(listing)
    assert [entry.path for entry in entries] == ["photographs/a.png", "photographs/b.jpg", "photographs/deep/c.jpg"]
    assert [entry.file for entry in entries] == [str(Path(entry.path).resolve()) for entry in entries]
    assert [entry.read() for entry in entries] == [entry.path.encode() for entry in entries]
    assert [entry.size for entry in entries] == [len(entry.path) for entry in entries]
    assert [entry.modified for entry in entries] == [os.stat(entry.path).st_mtime_ns // 1000 for entry in entries]
    assert listing.left_out.formats == {".txt": 1} and listing.count() == 3


def test_a_link_is_the_file_that_it_leads_to() -> None:
    Path("link.jpg").symlink_to("photographs/b.jpg")
    Path("linked").symlink_to("photographs")
    files = [entry.file for entry in Listing(["link.jpg", "linked/b.jpg", "photographs/../photographs/b.jpg"])]
    assert files == [str(Path("photographs/b.jpg").resolve())] * 3


def test_patterns_are_sorted_and_may_lead_into_folders() -> None:
    assert paths("photographs/*.[jp]*g") == ["photographs/a.png", "photographs/b.jpg"]
    assert paths("photographs/**/*.jpg") == ["photographs/b.jpg", "photographs/deep/c.jpg"]
    assert paths("photographs/d*") == ["photographs/deep/c.jpg"]
    Path("photographs/[1].jpg").write_bytes(b"a name, and no pattern")
    assert paths("photographs/[1].jpg") == ["photographs/[1].jpg"]
    assert Listing(["photographs/*.jpg"]).count() is None


@pytest.mark.parametrize("missing", ["nowhere", "photographs/*.webp", "nowhere/*.jpg"])
def test_what_does_not_exist_is_said_at_once(missing: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Listing(["photographs", missing])
    assert caught.value.filename == missing


def test_nothing_to_embed_says_what_was_left_out() -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    with pytest.raises(CommandError, match=r"no images in empty; left out: 1 file of formats.* \(1 \.txt\)"):
        require_images(Listing(["empty"]))


def test_what_cannot_be_tried_is_an_entry_with_the_reason() -> None:
    os.mkfifo("photographs/pipe")
    os.rename("photographs/a.png", b"photographs/\xff.png")
    problems = {entry.path: entry.problem for entry in Listing(["photographs/pipe", "photographs"]) if entry.problem}
    assert problems == {
        "photographs/pipe": "it is a FIFO and no regular file",
        "photographs/�.png": "its name is not UTF-8",
    }


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["photographs"], {"photographs/old.jpg", "photographs/deep/old.jpg", "photographs/x.tar!old.jpg"}),
        (["photographs/deep"], {"photographs/deep/old.jpg"}),
        (["photographs/*.jpg"], {"photographs/old.jpg", "photographs/deep/old.jpg", "photographs/x.tar!old.jpg"}),
        (["photographs/b.jpg"], set()),
    ],
)
def test_only_what_an_argument_leads_to_can_be_gone(arguments: list[str], gone: set[str]) -> None:
    listing = Listing(arguments)
    stored = [
        "photographs/old.jpg",
        "photographs/deep/old.jpg",
        "photographs/x.tar!old.jpg",
        "photographs/b.jpg",
        "other/old.jpg",
    ]
    assert {name for name in stored if listing.is_gone(str(Path(name).absolute()))} == gone
