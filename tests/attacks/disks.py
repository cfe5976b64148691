"""Disks that are full, read-only or slow: under the engine cache, TMPDIR, the log, and what commands write.

.venv/bin/python -m tests.attacks.disks [start] [running] [commands] [slow]    # 8 minutes

A full disk is a small tmpfs, a slow one is a file system in a file, whose reads and writes a cgroup of version 1
bounds. Both need root; what this process may not make is counted as not tried.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet
from PIL import Image

from tests.attacks.cgroups import ROOT, enter, make_group
from tests.attacks.file_systems import device_of, fill, mount_file, mount_file_again, mount_tmpfs, remount
from tests.attacks.processes import workers_of
from tests.attacks.server import MAE, PHOTO, PROBE, AttackedServer, report, serve
from tests.attacks.time_limit import end_after
from tests.support.image_files import noise
from tests.support.images import encoded

FULL_SIZES = ("1m", "12m", "24m")
"""Of disks on which an engine of about 25 MB is stored."""
ORIGINS: dict[str, dict[str, Path]] = {"unpacking": {}, "conversion": {"weights": PROBE}}
"""Settings by which the engine comes from the package, and by which it is converted."""
CONVERTING = "for openvino"
"""Part of the step that a conversion logs first."""
REPLACED_S = 30.0
SLOW_BYTES_PER_S = 4_000_000
PARTS = ("start", "running", "commands", "slow")
SLOW = ROOT / "blkio/mae-attack-disks"
FULL = re.compile(r"no space left", re.IGNORECASE)


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
    """First starts with an engine cache that is too small, and one more when it has been made larger.

    The engine comes from the package, or from a conversion.
    """
    for name, settings in ORIGINS.items():
        for size in FULL_SIZES:
            with mount_tmpfs(size) as disk:
                if disk is None:
                    seen["full: not tried, for want of permission"] += 1
                    return
                cache = disk / "cache"
                code, errors = start(cache, **settings)
                judge(f"{name} on a full disk", code, errors, cache, seen, expected=1)
                is_other = (CONVERTING in errors) != (name == "conversion")
                seen[f"{name} on a full disk: the engine comes from elsewhere"] += is_other
                if size == FULL_SIZES[-1]:
                    remount(disk, "size=100m")
                    with serve(real=True, engine_cache=cache, precision="fp32", **settings) as server:
                        seen[f"{name} with room again: {embed(server)}"] += 1
        with mount_tmpfs("100m") as disk:
            assert disk is not None
            remount(disk, "ro")
            code, errors = start(disk / "cache", **settings)
            good = code == 1 and "Read-only file system" in errors and str(disk / "cache") in errors
            seen[f"{name}, read-only: " + ("refused in a sentence" if good else errors)] += 1


def start(cache: Path, weights: Path | None = None) -> tuple[int, str]:
    """The exit code and the log of a server that cannot store its engine."""
    variables = {"MAE_ENGINE_CACHE": cache} | ({"MAE_WEIGHTS": weights} if weights else {})
    return run_command("serve", "--port", 0, "--host", "127.0.0.1", **variables)


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
    bitmap = encoded(noise(1800, 1800), "BMP")
    for _ in range(5):
        seen[f"{what}: photograph {embed(server)}"] += 1
        files = [("image", (f"{number}.bmp", bitmap)) for number in range(3)]
        seen[f"{what}: form {httpx.post(f'{server.url}/embed', files=files, timeout=60).status_code}"] += 1
        for path in ("/metrics", "/readyz", "/livez", "/info"):
            seen[f"{what}: probe {httpx.get(server.url + path, timeout=30).status_code}"] += 1
    seen[f"{what}: log of an error {embed(server, b'no image')}"] += 1
    if server.process.poll() is not None:
        seen[f"{what}: the server ended"] += 1


def kill_worker(server: AttackedServer, what: str, seen: Counter[str]) -> None:
    """A worker is replaced though nothing can be written."""
    workers = workers_of(server.process.pid)
    os.kill(workers[0], signal.SIGKILL)
    end = time.monotonic() + REPLACED_S
    while len({*workers_of(server.process.pid)} - {workers[0]}) < len(workers) and time.monotonic() < end:
        time.sleep(0.2)
    seen[f"{what}: a worker is {'replaced' if time.monotonic() < end else 'not replaced'}"] += 1
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


def attack_slow(cache: Path, seen: Counter[str]) -> None:
    """A start whose engine is read from a disk that gives 4 MB/s."""
    with mount_file(200) as disk, make_group(SLOW) as group:
        if disk is None or group is None:
            seen["slow: not tried, for want of permission"] += 1
            return
        shutil.copytree(cache, disk / "cache", symlinks=True)
        mount_file_again(disk)
        for direction in ("read", "write"):
            (group / f"blkio.throttle.{direction}_bps_device").write_text(f"{device_of(disk)} {SLOW_BYTES_PER_S}")
        begin = time.monotonic()
        with serve(real=True, engine_cache=disk / "cache", precision="fp32", enter=enter(group)) as server:
            seconds = time.monotonic() - begin
            print(f"slow: ready after {seconds:.1f} s", file=sys.stderr)
            seen["slow: " + ("the start waits for the disk" if seconds > 5 else "the disk was not slow")] += 1
            for _ in range(10):
                seen[f"slow: photograph {embed(server)}"] += 1


def prepare_cache(work: Path) -> Path:
    """An engine cache with the packaged model alone."""
    code, errors = run_command("compile", MAE_ENGINE_CACHE=work / "cache")
    assert code == 0, errors
    return work / "cache"


STARTED = (" on a full disk: refused in a sentence", " with room again: 200", ", read-only: refused in a sentence")
EXPECTED = {
    "full: not tried, for want of permission",
    "slow: not tried, for want of permission",
    *(f"{name}{what}" for name in ORIGINS for what in STARTED),
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
    end_after(minutes=45)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
