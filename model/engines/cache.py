"""The engine cache: compiled engines on disk, each in a folder named by a fingerprint of all its ingredients."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.atomic_write import atomic_write
from model.engines.base import EngineBuildError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def fingerprint(ingredients: dict[str, object]) -> str:
    """A name for the entry that `ingredients` make: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """Entries are written whole or not at all, and checked by SHA-256 before they are used."""

    def __init__(self, root: Path) -> None:
        """Keeps entries under `root`, which is made when the first one is stored."""
        self.root = root

    def obtain(self, name: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
        """Returns the folder of entry `name`, and whether it existed already; `make` fills a new one.

        A missing, incomplete or altered entry is made anew. Processes that want the same entry at once make it once. A
        half-written entry of a process that was killed is removed.

        Raises:
            EngineBuildError: the cache cannot be written.
        """
        folder = self.root / name
        if self._is_intact(folder):
            return folder, True
        with self._lock(name):
            if self._is_intact(folder):
                return folder, True
            for stale in self.root.glob(f".{name}-*"):
                shutil.rmtree(stale, ignore_errors=True)
            # Not by tempfile, which makes folders that only their owner reads: an image built by root is run by others.
            fresh = self.root / f".{name}-{uuid.uuid4().hex}"
            try:
                fresh.mkdir()
                make(fresh)
                (fresh / MANIFEST).write_text(json.dumps({"name": name, "files": _digests(fresh)}, indent=1))
                _remove(folder)
                os.replace(fresh, folder)
            except OSError as error:
                raise self._write_error(error) from error
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
            return folder, False

    def find(self, name: str) -> Path | None:
        """Returns the folder of entry `name` if it exists and is intact; nothing is made."""
        folder = self.root / name
        return folder if self._is_intact(folder) else None

    def read_sidecar(self, name: str) -> dict[str, Any] | None:
        """Reads the file that `write_sidecar` wrote; None if there is no such file, or it cannot be read."""
        path = self.root / f"{name}.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s)", path, error)
            return None
        return content if isinstance(content, dict) else None

    def has_sidecar(self, name: str) -> bool:
        """Whether there is a file that `write_sidecar` wrote, damaged or not."""
        return os.path.exists(self.root / f"{name}.json")

    def write_sidecar(self, name: str, content: dict[str, Any]) -> bool:
        """Writes a small JSON file beside the entries, whole or not at all, and returns whether it could.

        A cache that cannot be written is no error: the caller then measures anew at each start.
        """
        try:
            atomic_write(self.root / f"{name}.json", json.dumps(content).encode())
        except OSError as error:
            log.warning("not kept in the engine cache: %s", error)
            return False
        return True

    def _is_intact(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        try:
            # The name counts too: an entry of another model or machine, copied here, is whole and still foreign.
            expected = {"name": folder.name, "files": _digests(folder)}
            intact = bool(expected["files"]) and expected == json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            log.warning("engine cache entry %s cannot be read (%s)", folder, error)
            intact = False
        if not intact:
            log.warning("engine cache entry %s is damaged: it will be made anew", folder)
        return intact

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f".{name}.lock").open("w")
        except OSError as error:
            raise self._write_error(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, so also when the process dies
            yield

    def _write_error(self, error: OSError) -> EngineBuildError:
        return EngineBuildError(
            f"the engine cache {self.root} cannot be written ({error.strerror}): set ENGINE_CACHE to another folder"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
