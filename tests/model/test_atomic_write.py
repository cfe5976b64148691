from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from model.atomic_write import atomic_write


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_made_and_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"first", durable=durable)
    assert path.read_bytes() == b"first"
    atomic_write(path, memoryview(b"second"), durable=durable)
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_content_until_all_of_the_new_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "file", os.replace
    atomic_write(path, b"old")
    contents: list[tuple[bytes, bytes]] = []

    def watch(source: Path, target: Path) -> None:
        contents.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    atomic_write(path, b"new")
    assert contents == [(b"old", b"new")]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "no space left", str(source))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left") as failed:
        atomic_write(path, b"new")
    assert failed.value.filename == str(path), "the user has never heard of the temporary file"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_durable_write_syncs_the_data_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    atomic_write(tmp_path / "file", b"data")
    assert events == ["replace"]
    events.clear()
    atomic_write(tmp_path / "file", b"data", durable=True)
    assert events == ["sync file", "replace", "sync folder"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    atomic_write(tmp_path / "file", b"data")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
