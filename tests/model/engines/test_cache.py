"""Entries on disk, with something quick in the place of engines."""

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from model.engines.base import EngineBuildError
from model.engines.cache import EngineCache, fingerprint


class Maker:
    """Fills entries, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, folder: Path) -> None:
        self.count += 1
        (folder / "graph.bin").write_bytes(bytes(range(256)) * 100)
        (folder / "graph.xml").write_text("<net/>")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "a" / "cache")


def assert_whole(folder: Path) -> None:
    assert (folder / "graph.bin").read_bytes() == bytes(range(256)) * 100
    assert (folder / "graph.xml").read_text() == "<net/>"


def test_an_entry_is_made_once(cache: EngineCache) -> None:
    make = Maker()
    folder, was_there = cache.obtain("entry", make)
    assert_whole(folder)
    assert (folder.parent, was_there) == (cache.root, False)
    assert cache.obtain("entry", make) == (folder, True)
    assert EngineCache(cache.root).obtain("entry", make) == (folder, True)
    assert make.count == 1
    assert cache.obtain("other", make) == (cache.root / "other", False)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte changed": lambda folder: flip(folder / "graph.bin"),
    "cut short": lambda folder: os.truncate(folder / "graph.bin", 1000),
    "a file emptied": lambda folder: (folder / "graph.xml").write_text(""),
    "a file missing": lambda folder: (folder / "graph.xml").unlink(),
    "a file too many": lambda folder: (folder / "more").write_text(""),
    "a folder too many": lambda folder: (folder / "more").mkdir(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 40),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "empty and proud of it": lambda folder: [
        [path.unlink() for path in folder.iterdir()],
        (folder / "manifest.json").write_text("{}"),
    ],
    "another's manifest": lambda folder: (folder / "manifest.json").write_text('["graph.bin"]'),
    "no text for a manifest": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a file in its place": lambda folder: [
        [path.unlink() for path in folder.iterdir()],
        folder.rmdir(),
        folder.touch(),
    ],
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12_345] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew(cache: EngineCache, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    make = Maker()
    folder, _ = cache.obtain("entry", make)
    DAMAGES[damage](folder)
    assert cache.obtain("entry", make) == (folder, False)
    assert make.count == 2
    assert_whole(folder)
    assert not (folder / "more").exists()
    assert cache.obtain("entry", make) == (folder, True)
    if folder.is_dir() and damage != "a file in its place":
        assert "damaged" in caplog.text


@pytest.mark.parametrize("error", [ValueError("bad weights"), KeyboardInterrupt()])
def test_what_could_not_be_made_leaves_nothing_behind(cache: EngineCache, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "graph.bin").write_text("half")
        raise error

    with pytest.raises(type(error)):
        cache.obtain("entry", fail)
    assert [path.name for path in cache.root.iterdir()] == [".entry.lock"]
    cache.obtain("entry", Maker())


@pytest.mark.live
def test_what_a_killed_process_left_is_removed(cache: EngineCache) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from model.engines.cache import EngineCache

        def die(folder):
            (folder / "graph.bin").write_text("half")
            os.kill(os.getpid(), 9)

        EngineCache(Path(sys.argv[1])).obtain("entry", die)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(cache.root)], check=False)
    assert len(list(cache.root.glob(".entry-*"))) == 1
    folder, was_there = cache.obtain("entry", Maker())
    assert not was_there
    assert_whole(folder)
    assert sorted(path.name for path in cache.root.iterdir()) == [".entry.lock", "entry"]


@pytest.mark.live
def test_processes_that_want_the_same_entry_make_it_once(cache: EngineCache, tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from model.engines.cache import EngineCache

        def make(folder):
            with open(sys.argv[2], "a") as log:
                log.write("made\\n")
            time.sleep(0.3)
            (folder / "graph.bin").write_text("whole")

        folder, was_there = EngineCache(Path(sys.argv[1])).obtain("entry", make)
        assert (folder / "graph.bin").read_text() == "whole"
        print(was_there)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(cache.root), str(tmp_path / "log")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert sorted(child.communicate()[0].strip() for child in children) == ["False", "True", "True", "True"]
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_folder_that_cannot_be_written_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/cache")):
        with pytest.raises(EngineBuildError, match=rf"{root} cannot be written \(.*\): set ENGINE_CACHE"):
            EngineCache(root).obtain("entry", Maker())


def test_a_full_disk_is_named_too(cache: EngineCache) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(EngineBuildError, match="No space left on device"):
        cache.obtain("entry", fill)


def test_an_entry_that_is_there_needs_nothing_written(cache: EngineCache) -> None:
    cache.obtain("entry", Maker())
    (cache.root / ".entry.lock").unlink()
    cache.obtain("entry", Maker())
    assert [path.name for path in cache.root.iterdir()] == ["entry"]


def test_others_may_read_what_root_has_made(cache: EngineCache) -> None:
    previous = os.umask(0o022)
    try:
        folder, _ = cache.obtain("entry", Maker())
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_warm_entry_is_silent(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cache.obtain("entry", Maker())
    cache.obtain("entry", Maker())
    assert caplog.records == []


def test_a_fingerprint_depends_on_what_is_in_and_not_on_its_order() -> None:
    one = fingerprint({"size": 224, "versions": {"torch": "1", "openvino": "2"}})
    assert one == fingerprint({"versions": {"openvino": "2", "torch": "1"}, "size": 224})
    assert one != fingerprint({"size": "224", "versions": {"torch": "1", "openvino": "2"}})
    assert len(one) == 32
