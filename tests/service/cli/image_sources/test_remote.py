"""URLs: what is found and stored of them, and what is never shown; fsspec's file system in memory is the bucket."""

import io
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from service.cli.errors import CommandError
from service.cli.image_sources.entry import ImageUnreadable
from service.cli.image_sources.listing import Listing, require_images
from service.cli.image_sources.remote import describe_remote_error, without_credentials

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    for name in ("b.jpg", "a.png", "deep/c.jpg", "deep/notes.txt", ".cache/d.jpg"):
        files.pipe(f"/bucket/photographs/{name}", name.encode())
    yield files
    files.rm("/bucket", recursive=True)


def test_a_folder_is_searched_as_on_the_disk(bucket: Any) -> None:
    listing = Listing(["memory://bucket/photographs/"])
    entries = list(listing)
    names = ["a.png", "b.jpg", "deep/c.jpg"]
    assert [entry.path for entry in entries] == [f"memory://bucket/photographs/{name}" for name in names]
    assert [entry.file for entry in entries] == [entry.path for entry in entries]
    assert [(entry.read(), entry.size) for entry in entries] == [(name.encode(), len(name)) for name in names]
    made = bucket.info("/bucket/photographs/a.png")["created"]
    assert entries[0].modified == round(made.timestamp() * 1e6)
    assert abs(datetime.now(UTC).timestamp() - made.timestamp()) < 1000
    assert (listing.left_out.formats, listing.left_out.hidden, listing.count()) == ({".txt": 1}, 1, None)


def test_the_empty_object_that_stands_for_a_folder_is_not_counted(bucket: Any) -> None:
    bucket.store["/bucket/photographs/deep/"] = MemoryFile(bucket, "/bucket/photographs/deep/")
    try:
        listing = Listing(["memory://bucket/photographs/"])
        assert [entry.path.rpartition("/")[2] for entry in listing] == ["a.png", "b.jpg", "c.jpg"]
        assert listing.left_out.formats == {".txt": 1}
    finally:
        del bucket.store["/bucket/photographs/deep/"]


def test_objects_and_patterns() -> None:
    assert [entry.path for entry in Listing(["memory://bucket/photographs/b.jpg"])] == [
        "memory://bucket/photographs/b.jpg"
    ]
    found = [entry.path for entry in Listing(["memory://bucket/photographs/**/*.jpg"])]
    assert "memory://bucket/photographs/deep/c.jpg" in found and "memory://bucket/photographs/b.jpg" in found


def test_an_archive_is_read_in_its_order(bucket: Any) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 1000 + number
            archive.addfile(member, io.BytesIO(bytes([number]) * member.size))
    bucket.pipe("/bucket/shard.tar", data.getvalue())
    found = [(entry.file, entry.read()) for entry in Listing(["memory://bucket/shard.tar"])]
    assert found == [
        (f"memory://bucket/shard.tar!{number}.jpg", bytes([number]) * (1000 + number)) for number in range(3)
    ]


def test_an_object_that_fails_says_so_without_the_words_of_the_file_system(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> bytes:
        raise RuntimeError(f"no luck with key {SECRET}")

    entries = list(Listing(["memory://bucket/photographs/"]))
    bucket.rm("/bucket/photographs/a.png")
    with pytest.raises(ImageUnreadable) as missing:
        entries[0].read()
    assert missing.value.strerror == "there is no such file or folder"
    monkeypatch.setattr(type(bucket), "cat_file", fail)
    with pytest.raises(ImageUnreadable) as caught:
        entries[1].read()
    assert SECRET not in repr(caught.value) and caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("memory://nowhere/", "memory://nowhere/: there is no such file or folder"),
        ("memory://bucket/*.webp", r"memory://bucket/\*.webp: there is no such file or folder"),
        ("nothing://x/y.jpg", "nothing:// is no kind of address that fsspec knows"),
    ],
)
def test_what_cannot_be_listed_is_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        require_images(Listing([url]))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **named: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(CommandError, match=r"reading s3:// needs packages .*: pip install fsspec s3fs$"):
        Listing(["s3://bucket/x.jpg"])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a?b.jpg", "s3://bucket/a?b.jpg"),
        (f"s3://key:{SECRET}@bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        (f"https://me:{SECRET}@host:8443/a.jpg#top", "https://host:8443/a.jpg"),
        (f"https://host/a.jpg?X-Amz-Credential=A&X-Amz-Signature={SECRET}&X-Amz-Expires=60", "https://host/a.jpg"),
        (f"https://host/a.jpg?Expires=1&Signature={SECRET}&Key-Pair-Id=K", "https://host/a.jpg"),
        (f"https://host/a.jpg?sv=2024&se=2026&sr=b&sp=r&sig={SECRET}", "https://host/a.jpg"),
        (f"https://host/a.jpg?access_token={SECRET}", "https://host/a.jpg"),
    ],
)
def test_credentials_are_not_part_of_a_name(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_another_query_tells_files_apart_without_being_shown() -> None:
    first, second = (without_credentials(f"https://host/image?id={number}&sig=x") for number in (SECRET, "7"))
    assert first != second and SECRET not in first
    assert first == without_credentials(f"https://host/image?id={SECRET}&sig=y")


def test_errors_are_told_in_words_of_our_own() -> None:
    class ServerError(Exception):
        status = 503

    assert describe_remote_error(ServerError(SECRET)) == "the server answered with status 503"
    assert describe_remote_error(PermissionError(SECRET)) == "access is refused"
    assert describe_remote_error(TimeoutError(SECRET)) == "there was no answer in time"
    assert describe_remote_error(OSError(5, SECRET)) == "Input/output error"
    assert describe_remote_error(KeyError(SECRET)) == "it cannot be read (KeyError)"
