"""Images in .tar archives, whole and cut off."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from service.cli.image_sources.listing import Listing

MEMBERS = {"a/1.jpg": b"first" * 200, "a/1.cls": b"3", "b/2.PNG": b"second" * 200, ".hidden/3.jpg": b"", "4.webp": b"4"}
IMAGES = ["a/1.jpg", "b/2.PNG", "4.webp"]


def archive(mode: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as tar:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a/1.jpg"
        tar.addfile(link)
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.TGZ", "w:gz"), ("x.tar.xz", "w:xz")]
)
def test_members_come_in_the_order_of_the_archive(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    path.write_bytes(archive(mode))
    listing = Listing([str(path)])
    found = [(entry.path, entry.file, entry.size, entry.modified, entry.read()) for entry in listing]
    assert found == [
        (f"{path}!{member}", f"{path}!{member}", len(MEMBERS[member]), 1_700_000_000_000_000, MEMBERS[member])
        for member in IMAGES
    ]
    assert listing.left_out.sentence == (
        "left out: 1 file of formats that are not read (1 .cls), 1 link, 1 hidden or system entry"
    )


def test_members_of_a_plain_archive_may_be_read_later(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(archive("w"))
    entries = list(Listing([str(tmp_path / "x.tar")]))
    assert [entry.read() for entry in reversed(entries)] == [MEMBERS[name] for name in reversed(IMAGES)]


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_that_is_cut_gives_what_is_whole(tmp_path: Path, compressed: bool) -> None:
    whole = archive("w")
    cut = whole[: whole.index(b"second") + 20]
    path = tmp_path / ("x.tar.gz" if compressed else "x.tar")
    path.write_bytes(gzip.compress(cut)[:-9] if compressed else cut)
    results = []
    for entry in Listing([str(path)]):
        try:
            results.append((entry.path, entry.problem or entry.read()))
        except OSError as error:
            results.append((entry.path, error.strerror))
    assert results == [
        (f"{path}!a/1.jpg", MEMBERS["a/1.jpg"]),
        (f"{path}!b/2.PNG", "the archive ends within it"),
        (str(path), "the archive cannot be read behind its member b/2.PNG: its end is missing"),
    ]


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_what_is_no_archive_is_one_entry_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text" * 1000)
    [entry] = Listing([str(tmp_path / name)])
    assert entry.path == str(tmp_path / name) and "is no archive of the kind that its name says" in entry.problem
