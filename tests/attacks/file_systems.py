"""File systems for the attack on disks: small ones, and one in a file, whose device a cgroup can make slow."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mount_tmpfs(size: str) -> Iterator[Path | None]:
    """A disk of this size; None where this process may mount none."""
    with tempfile.TemporaryDirectory(prefix="mae-disk-") as name:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name], capture_output=True)
        if made.returncode:
            yield None
            return
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def remount(disk: Path, options: str) -> None:
    """Changes a mounted disk, as to another size."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass


@contextmanager
def mount_file(size_mb: int) -> Iterator[Path | None]:
    """A file system in a file; None where this process may make none."""
    with tempfile.TemporaryDirectory(prefix="mae-slow-") as name:
        image, disk = Path(name, "image"), Path(name, "disk")
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(size_mb * 1_000_000)
        made = subprocess.run(["mkfs.ext4", "-q", str(image)], capture_output=True)
        if made.returncode or subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True).returncode:
            yield None
            return
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def mount_file_again(disk: Path) -> None:
    """Has the kernel forget what was read from a disk of `mount_file` or written to it."""
    subprocess.run(["umount", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk.with_name("image"), disk], check=True)


def device_of(disk: Path) -> str:
    """The number of a disk's device, as cgroups name it."""
    number = os.stat(disk).st_dev
    return f"{os.major(number)}:{os.minor(number)}"
