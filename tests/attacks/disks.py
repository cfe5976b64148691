"""Disks that are full, read-only or slow: under the engine cache, TMPDIR, the log, and what commands write.

.venv/bin/python -m tests.attacks.disks [start] [running] [commands] [slow]

A full disk is a small tmpfs, a slow one is a file system in a file, whose reads and writes a cgroup of version 1
bounds. Both need root; what this process may not make is counted as not tried.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet
from PIL import Image

from service.benchmark.processes import MAE_SERVE
from tests.attacks.server import AttackedServer, report, serve

MAE = MAE_SERVE[:-1]
FULL_SIZES = ("1m", "12m", "24m")
"""Of disks on which the packaged model's engine, about 25 MB, is built."""
SLOW_BYTES_PER_S = 4_000_000
PHOTO = (Path(__file__).parents[1] / "data/chelsea.jpg").read_bytes()
PARTS = ("start", "running", "commands", "slow")
BLKIO = Path("/sys/fs/cgroup/blkio/mae-attack-disks")
FULL = re.compile(r"no space left", re.IGNORECASE)


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
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass


def run_command(*arguments: object, **environment: object) -> tuple[int, str]:
    """The exit code of `mae`, and what it writes to standard error."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
    variables |= {"MAE_PRECISION": "fp32", **{name: str(value) for name, value in environment.items()}}
    command = [*MAE, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr


def judge(what: str, code: int, errors: str, path: Path, seen: Counter[str], expected: int) -> None:
    """Counts how a command has ended on a disk without room: the exit code, and a sentence that names the path."""
    sentences = [line for line in errors.splitlines() if "CRITICAL" in line or line.startswith("mae: ")]
    sentence = sentences[-1] if sentences else ""
    faults = [
        f"exit code {code}" if code != expected else "",
        "" if FULL.search(sentence) else "does not say that no space is left",
        "" if str(path) in sentence else "does not name the path",
    ]
    if fault := ", ".join(filter(None, faults)):
        print(f"{what}:\n{errors}", file=sys.stderr)
        seen[f"{what}: {fault}"] += 1
    else:
        seen[f"{what}: refused in a sentence"] += 1


def attack_start(seen: Counter[str]) -> None:
    """First starts with an engine cache that is too small, and one more when it has been made larger."""
    disk: Path | None
    for size in FULL_SIZES:
        with mount_tmpfs(size) as disk:
            if disk is None:
                seen["full: not tried, for want of permission"] += 1
                return
            code, errors = run_command("serve", "--port", 0, "--host", "127.0.0.1", MAE_ENGINE_CACHE=disk / "cache")
            judge("start on a full disk", code, errors, disk / "cache", seen, expected=1)
            if size != FULL_SIZES[-1]:
                continue
            remount(disk, "size=100m")
            with serve(real=True, engine_cache=disk / "cache", precision="fp32") as server:
                seen[f"start with room again: {embed(server)}"] += 1
    with mount_tmpfs("100m") as disk:
        assert disk is not None
        remount(disk, "ro")
        code, errors = run_command("serve", "--port", 0, "--host", "127.0.0.1", MAE_ENGINE_CACHE=disk / "cache")
        good = code == 1 and "Read-only file system" in errors and str(disk / "cache") in errors
        seen["first start, read-only: " + ("refused in a sentence" if good else errors)] += 1


def embed(server: AttackedServer, body: bytes = PHOTO, kind: str = "image/jpeg") -> str:
    """The status of a request."""
    answer = httpx.post(f"{server.url}/embed", content=body, headers={"Content-Type": kind}, timeout=60)
    return str(answer.status_code)


def attack_running(cache: Path, workers: int, seen: Counter[str]) -> None:
    """Servers whose cache, TMPDIR and log are on one disk, which is filled up and then is read-only."""
    with mount_tmpfs("64m") as disk:
        if disk is None:
            return
        shutil.copytree(cache, disk / "cache", symlinks=True)
        settings = {"engine_cache": disk / "cache", "precision": "fp32", "http_workers": workers}
        with serve(real=True, fake={"TMPDIR": str(disk)}, log_folder=disk, **settings) as server:
            fill(disk)
            try_requests(server, "disk full", seen)
            if workers:
                kill_worker(server, "disk full", seen)
    with mount_tmpfs("64m") as disk:
        assert disk is not None
        shutil.copytree(cache, disk / "cache", symlinks=True)
        settings["engine_cache"] = disk / "cache"
        remount(disk, "ro")
        with serve(real=True, fake={"TMPDIR": str(disk)}, **settings) as server:
            try_requests(server, "read-only", seen)


def try_requests(server: AttackedServer, what: str, seen: Counter[str]) -> None:
    """Photographs, forms of 29 MB, and the routes of operators."""
    noise = np.random.default_rng(0).integers(0, 256, (1800, 1800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out := io.BytesIO(), "BMP")
    for _ in range(5):
        seen[f"{what}: photograph {embed(server)}"] += 1
        files = [("image", (f"{number}.bmp", out.getvalue())) for number in range(3)]
        seen[f"{what}: form {httpx.post(f'{server.url}/embed', files=files, timeout=60).status_code}"] += 1
        for path in ("/metrics", "/readyz", "/livez", "/info"):
            seen[f"{what}: probe {httpx.get(server.url + path, timeout=30).status_code}"] += 1
    seen[f"{what}: log of an error {embed(server, b'no image')}"] += 1
    if server.process.poll() is not None:
        seen[f"{what}: the server ended"] += 1


def kill_worker(server: AttackedServer, what: str, seen: Counter[str]) -> None:
    """A worker is replaced though nothing can be written."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"service.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], 9)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if len({httpx.get(f"{server.url}/readyz", timeout=5).status_code for _ in range(8)}) == 1:
                break
        time.sleep(0.5)
    after = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    count = sum(b"service.workers" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in after)
    seen[f"{what}: {'a worker is replaced' if count == len(workers) else 'a worker is not replaced'}"] += 1
    seen[f"{what}: photograph {embed(server)}"] += 1


def attack_commands(work: Path, seen: Counter[str]) -> None:
    """Commands that write to a disk without room: they end in a sentence, and continue when there is room."""
    photographs = work / "photographs"
    make_photographs(photographs, 600)
    for output in ("out", "out.npz", "out.parquet"):
        with mount_tmpfs("300k") as disk:
            if disk is None:
                return
            written = f"{disk / output}{'/' if '.' not in output else ''}"
            code, errors = run_command("embed", photographs, "-o", written)
            judge("mae embed", code, errors, disk, seen, expected=2)
            remount(disk, "size=50m")
            code, errors = run_command("embed", photographs, "-o", written)
            files = read_files(disk / output)
            whole = code == 0 and len(files) == len(set(files)) == 600
            seen["mae embed continued: " + ("600 rows, none twice" if whole else f"{code} {len(files)} rows")] += 1
    commands = {
        "mae index": (["index", photographs, "-o"], "photos.lance", "400k", 2),
        "mae pretrain": (["pretrain", photographs, "--steps", 2, "--batch-size", 8, "-o"], "run", "2m", 2),
        "mae pack": (["pack", photographs, "-o"], "photographs.pack", "300k", 2),
        "mae convert": (["convert", "model/weights/mae_tiny.safetensors", "-o"], "m.safetensors", "4m", 2),
    }
    for name, (arguments, output, size, expected) in commands.items():
        with mount_tmpfs(size) as disk:
            assert disk is not None
            code, errors = run_command(*arguments, disk / output)
            judge(name, code, errors, disk, seen, expected)
    with mount_tmpfs("12m") as disk:
        assert disk is not None
        code, errors = run_command("compile", MAE_ENGINE_CACHE=disk)
        judge("mae compile", code, errors, disk, seen, 2)


def make_photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number:04}.png")


def read_files(output: Path) -> list[str]:
    """The files of the rows of an output."""
    if not output.exists():
        return []
    if output.suffix == ".npz":
        with np.load(output) as arrays:
            return list(arrays["files"])
    return list(pyarrow.parquet.read_table(output)["file"].to_pylist())


@contextmanager
def mount_slow(size_mb: int) -> Iterator[tuple[Path, str] | None]:
    """A file system in a file, and the number of its device; None where this process may make none."""
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
            number = os.stat(disk).st_dev
            yield disk, f"{os.major(number)}:{os.minor(number)}"
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def attack_slow(cache: Path, seen: Counter[str]) -> None:
    """A start whose engine is read at 4 MB/s, and `mae embed` to a disk that takes as much."""
    with mount_slow(200) as slow:
        try:
            BLKIO.mkdir()
        except OSError:
            slow = None
        if slow is None:
            seen["slow: not tried, for want of permission"] += 1
            return
        disk, device = slow
        try:
            shutil.copytree(cache, disk / "cache", symlinks=True)
            subprocess.run(["umount", disk], check=True)  # what was read or written lately is forgotten
            subprocess.run(["mount", "-o", "loop", disk.with_name("image"), disk], check=True)
            number = os.stat(disk).st_dev
            device = f"{os.major(number)}:{os.minor(number)}"
            for direction in ("read", "write"):
                (BLKIO / f"blkio.throttle.{direction}_bps_device").write_text(f"{device} {SLOW_BYTES_PER_S}")

            def enter() -> None:
                (BLKIO / "cgroup.procs").write_text(str(os.getpid()))

            begin = time.monotonic()
            with serve(real=True, engine_cache=disk / "cache", precision="fp32", enter=enter) as server:
                seconds = time.monotonic() - begin
                print(f"slow: ready after {seconds:.1f} s", file=sys.stderr)
                seen["slow: " + ("the start waits for the disk" if seconds > 5 else "the disk was not slow")] += 1
                for _ in range(10):
                    seen[f"slow: photograph {embed(server)}"] += 1
        finally:
            with contextlib.suppress(OSError):
                BLKIO.rmdir()


def prepare_cache(work: Path) -> Path:
    """An engine cache with the packaged model alone."""
    code, errors = run_command("compile", MAE_ENGINE_CACHE=work / "cache")
    assert code == 0, errors
    return work / "cache"


EXPECTED = {
    "full: not tried, for want of permission",
    "slow: not tried, for want of permission",
    *(f"{name}: refused in a sentence" for name in ("start on a full disk", "first start, read-only")),
    "start with room again: 200",
    *(f"{what}: {kind} 200" for what in ("disk full", "read-only") for kind in ("photograph", "form", "probe")),
    *(f"{what}: log of an error 400" for what in ("disk full", "read-only")),
    "disk full: a worker is replaced",
    *(f"mae {name}: refused in a sentence" for name in ("embed", "index", "pretrain", "pack", "convert", "compile")),
    "mae embed continued: 600 rows, none twice",
    "slow: the start waits for the disk",
    "slow: photograph 200",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"by default all: {' '.join(PARTS)}")
    parts = parser.parse_args().parts
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mae-disks-") as name:
        work = Path(name)
        cache = prepare_cache(work) if {"running", "slow"} & set(parts) else work
        if "start" in parts:
            attack_start(seen)
        for workers in (0, 2) if "running" in parts else ():
            attack_running(cache, workers, seen)
        if "commands" in parts:
            attack_commands(work, seen)
        if "slow" in parts:
            attack_slow(cache, seen)
    return report("disks", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
