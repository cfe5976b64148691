"""Compiled engines on disk, each in a folder named by a fingerprint of all that went into it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model.engines.base import EngineBuildError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


def fingerprint(ingredients: dict[str, object]) -> str:
    """A name for what `ingredients` would make: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """Entries are written whole or not at all, and checked by SHA-256 before they are used."""

    def __init__(self, root: Path) -> None:
        """Keeps entries under `root`, which is made when the first one is stored."""
        self.root = root

    def obtain(self, name: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of entry `name` and whether it was there already; `make` fills a new one.

        A missing, incomplete or altered entry is made anew. Processes that want the same entry at once make it once.

        Raises:
            EngineBuildError: the cache cannot be written.
        """
        folder = self.root / name
        if self._intact(folder):
            return folder, True
        with self._locked(name):
            if self._intact(folder):
                return folder, True
            fresh = Path(tempfile.mkdtemp(dir=self.root, prefix=f".{name}-"))
            try:
                make(fresh)
                (fresh / MANIFEST).write_text(json.dumps(_digests(fresh), indent=1))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(fresh, folder)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            return folder, False

    def _intact(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        try:
            expected = json.loads((folder / MANIFEST).read_text())
            intact = bool(expected) and expected == _digests(folder)
        except (OSError, ValueError) as error:
            log.warning("engine cache entry %s cannot be read (%s)", folder, error)
            intact = False
        if not intact:
            log.warning("engine cache entry %s is damaged: it will be made anew", folder)
        return intact

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f".{name}.lock").open("w")
        except OSError as error:
            raise EngineBuildError(
                f"the engine cache {self.root} cannot be written ({error.strerror}): set ENGINE_CACHE to another folder"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, so also when the process dies
            yield


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
