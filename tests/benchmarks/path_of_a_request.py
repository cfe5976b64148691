"""Counts the files of this project through which one request, or one step of pretraining, passes.

    .venv/bin/python -m tests.benchmarks.path_of_a_request              # one JPEG through POST /embed
    .venv/bin/python -m tests.benchmarks.path_of_a_request --pretrain   # `mae pretrain` with one step
    PYTHONPATH=OTHER_CHECKOUT .venv/bin/python -P tests/benchmarks/path_of_a_request.py

A file counts if a function in it starts while the request is served, in any thread (sys.setprofile). A visit is a run
of functions that start one after the other in the same file, so a file has more visits if control leaves it and comes
back. Coroutines that continue after a wait are not counted, and neither is code that runs while a module is imported.
Another request comes first, to warm up. The app runs in this process, without a network, around the engine that the
settings (MAE_…) name. The last command measures the code of another checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import inspect
import io
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import numpy as np
from PIL import Image

PACKAGES = ("service", "model")
READY_S = 300.0
SETTLE_S = 0.2
"""Seconds after an answer in which the lane that computed it returns to its queue."""
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


class FunctionRecorder:
    """Records the functions of this project that start, in all threads that begin after `install`."""

    def __init__(self, root: Path) -> None:
        """Records functions of files in the packages below `root`."""
        self.starts: list[tuple[str, str]] = []
        """The file, relative to the root, and the qualified name of each function, in the order of their starts."""
        self._root = root
        self._recording = False
        self._frames: set[FrameType] = set()  # kept alive, so that a frame that resumes is not taken for a new one
        self._files: dict[str, str | None] = {}

    def install(self) -> None:
        """Makes this thread and those that begin from now on report their calls."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def uninstall(self) -> None:
        """Ends the reports of this thread, and of threads that begin later."""
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # typeshed lacks None

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records what starts while the block runs."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if not self._recording or event != "call" or frame in self._frames:
            return
        file = self._file_of(frame.f_code)
        if file is not None and not _is_importing(frame):
            self._frames.add(frame)
            self.starts.append((file, frame.f_code.co_qualname))

    def _file_of(self, code: CodeType) -> str | None:
        """The file of a function of this project; None for other code, comprehensions and bodies of classes."""
        if not code.co_flags & inspect.CO_OPTIMIZED or code.co_name in COMPREHENSIONS:
            return None
        name = code.co_filename
        if name not in self._files:
            path = Path(name)
            inside = path.is_relative_to(self._root) and path.relative_to(self._root).parts[0] in PACKAGES
            self._files[name] = str(path.relative_to(self._root)) if inside else None
        return self._files[name]


def _is_importing(frame: FrameType) -> bool:
    """Whether the function runs as a part of an import."""
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "<module>" and caller.f_globals.get("__name__") != "__main__":
            return True
        caller = caller.f_back
    return False


def print_table(starts: list[tuple[str, str]], root: Path, with_order: bool) -> None:
    """Prints each file with its lines, functions and visits, and their sums; with `with_order` all visits in order."""
    visits = [(file, [name for _, name in group]) for file, group in groupby(starts, key=lambda start: start[0])]
    counts = Counter(file for file, _ in visits)
    functions = {file: {name for other, name in starts if other == file} for file in counts}
    lines = {file: len((root / file).read_text().splitlines()) for file in counts}
    width = max(map(len, counts))
    if with_order:
        for number, (file, names) in enumerate(visits, start=1):
            print(f"{number:4}  {file:{width}}  {', '.join(dict.fromkeys(names))}")
        print()
    print(f"{'file':{width}}{'lines':>8}{'functions':>11}{'visits':>8}")
    for file in counts:
        print(f"{file:{width}}{lines[file]:8}{len(functions[file]):11}{counts[file]:8}")
    sums = (sum(lines.values()), sum(map(len, functions.values())), counts.total())
    print(f"{f'{len(counts)} files':{width}}{sums[0]:8}{sums[1]:11}{sums[2]:8}")


async def serve_one_request(recorder: FunctionRecorder) -> None:
    """Uploads a JPEG to POST /embed twice, as a form with one file, and records the second request.

    Raises:
        SystemExit: the server does not become ready, or does not answer 200.
    """
    # Before version 0.2.0 the app was in service/app.py. Trying the import would not tell: packages that the other
    # checkout lacks are found in the installed project.
    name = "service.api.app" if (project_root() / "service/api").is_dir() else "service.app"
    app = importlib.import_module(name).create_app()
    upload = {"image": ("image.jpg", jpeg(), "image/jpeg")}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://app") as client,
    ):
        await wait_until_ready(client)
        await client.post("/embed", files=upload)  # warms up
        await asyncio.sleep(SETTLE_S)
        with recorder.record():
            response = await client.post("/embed", files=upload)
            await asyncio.sleep(SETTLE_S)
        if response.status_code != 200:
            sys.exit(f"POST /embed: {response.status_code} {response.text}")


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    """Returns when /readyz answers 200.

    Raises:
        SystemExit: it does not within `READY_S` seconds.
    """
    for _ in range(int(READY_S / 0.1)):
        if (await client.get("/readyz")).status_code == 200:
            return
        await asyncio.sleep(0.1)
    sys.exit(f"the app is not ready after {READY_S:.0f} s")


def pretrain_one_step(recorder: FunctionRecorder) -> None:
    """Runs `mae pretrain` with one step on four images, and records it from the command line to the end.

    Raises:
        SystemExit: the command fails.
    """
    name = "service.cli.main" if (project_root() / "service/cli").is_dir() else "service.cli"
    main = importlib.import_module(name).main
    with tempfile.TemporaryDirectory(prefix="mae-path-") as folder:
        images = Path(folder, "images")
        images.mkdir()
        for number in range(4):
            (images / f"{number}.jpg").write_bytes(jpeg(seed=number))
        options = ["--steps", "1", "--batch-size", "2", "--image-size", "32", "--workers", "1", "--precision", "fp32"]
        command = ["pretrain", str(images), "--output", str(Path(folder, "run")), *options]
        with recorder.record():
            call_main(main, command)


def call_main(main: Callable[[list[str]], None], command: list[str]) -> None:
    """Runs a command that ends with `SystemExit`.

    Raises:
        SystemExit: its exit code is not 0.
    """
    try:
        main(command)
    except SystemExit as end:
        if end.code:
            raise


def jpeg(seed: int = 0) -> bytes:
    """A JPEG of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def project_root() -> Path:
    """The checkout whose packages Python imports."""
    spec: Any = importlib.util.find_spec("service")
    return Path(next(iter(spec.submodule_search_locations))).resolve().parent


def main() -> None:
    """Runs one request, or one step of pretraining, and prints the files that it passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrain", action="store_true", help="one step of `mae pretrain` instead of a request")
    parser.add_argument("--order", action="store_true", help="print all visits in their order too")
    options = parser.parse_args()
    os.environ.setdefault("MAE_LOG_FORMAT", "text")
    recorder = FunctionRecorder(project_root())
    recorder.install()
    try:
        if options.pretrain:
            pretrain_one_step(recorder)
        else:
            asyncio.run(serve_one_request(recorder))
    finally:
        recorder.uninstall()
    print_table(recorder.starts, project_root(), options.order)


if __name__ == "__main__":
    main()
