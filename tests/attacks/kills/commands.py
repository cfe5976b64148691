"""kill -9 of `mae embed`, of the processes that decode for it, of `mae index` and of `mae pretrain`; each goes on."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from tests.attacks.kills.scene import Scene
from tests.attacks.server import MAE

IMAGES = 64
DECODER = "multiprocessing.spawn"
STEPS = 12
Rows = dict[str, bytes]


def make_images(folder: Path, count: int) -> Path:
    """A folder of photographs that differ."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg")
    return folder


class Command:
    """A command with an output, which is run, killed and run again."""

    def __init__(
        self, scene: Scene, cache: Path, arguments: Sequence[str], resumed: Sequence[str] | None = None
    ) -> None:
        """Runs nothing yet.

        Args:
            scene: where it runs.
            cache: the engine cache.
            arguments: of `mae`.
            resumed: of `mae` when it goes on; the same ones if None.
        """
        self.scene = scene
        self._arguments = arguments
        self._resumed = arguments if resumed is None else resumed
        self._variables = {"MAE_ENGINE_CACHE": str(cache), "MAE_PRECISION": "fp32", "MAE_DECODE_THREADS": "2"}
        self._started = False
        self.log = scene.folder / f"command-{time.monotonic_ns()}.log"

    def start(self) -> Any:
        """Starts it, or lets it go on."""
        arguments = self._resumed if self._started else self._arguments
        self._started = True
        return self.scene.start((*MAE, *arguments), self.log, **self._variables)

    def finish(self, what: str) -> float:
        """Runs it to its end; returns how many seconds it took."""
        begin = time.monotonic()
        code = self.start().wait(300)
        if code:
            self.scene.seen[f"{what}: exit code {code}"] += 1
            print(self.log.read_text(), file=sys.stderr)
        self.scene.wait_for_end(what)
        self.scene.check_files(what)
        return time.monotonic() - begin

    def kill_at_random(self, what: str, seconds: float, times: int) -> None:
        """Kills it and lets it go on, again and again, at any moment of the `seconds` that it takes."""
        for number in range(times):
            process = self.start()
            time.sleep(seconds * (number + self.scene.generator.random()) / times)
            if process.poll() is None:
                self.scene.kill(process, what)
            else:  # what was done before was not done again, so it has come to its end
                self.scene.seen["ended before the kill"] += 1
        self.finish(what)


def compare(scene: Scene, what: str, rows: Rows, expected: Rows) -> None:
    """Counts rows, and those that are missing or others than without a kill."""
    scene.seen["rows compared"] += len(expected)
    if wrong := sum(rows.get(name) != row for name, row in expected.items()) + len(rows.keys() - expected.keys()):
        scene.seen[f"{what}: wrong rows"] += wrong


def read_rows(scene: Scene, what: str, files: Sequence[str], vectors: Sequence[Any]) -> Rows:
    """The vectors by file; counts files that occur twice."""
    if len(set(files)) < len(files):
        scene.seen[f"{what}: rows twice"] += len(files) - len(set(files))
    return {file: np.asarray(vector, np.float32).tobytes() for file, vector in zip(files, vectors, strict=True)}


def attack_embed(scene: Scene, cache: Path, images: Path) -> None:
    """`mae embed` at random moments, with threads and with processes that decode, and such a process itself."""

    def rows_of(output: Path) -> Rows:
        if output.suffix == ".npz":
            with np.load(output) as arrays:
                return read_rows(scene, str(output.name), arrays["files"].tolist(), list(arrays["vectors"]))
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(sorted(output.glob("part-*.parquet")))
        return read_rows(scene, str(output.name), table["file"].to_pylist(), table["vector"].to_pylist())

    whole = scene.folder / "whole.npz"
    seconds = Command(scene, cache, ["embed", str(images), "-o", str(whole)]).finish("mae embed")
    expected = rows_of(whole)
    if len(expected) != IMAGES:
        scene.seen["mae embed: images left out"] += IMAGES - len(expected)
    for output in (scene.folder / "one-file.npz", scene.folder / "shards"):
        if not output.suffix and importlib.util.find_spec("pyarrow") is None:
            scene.seen["shards not tried, for want of PyArrow"] += 1
            continue
        target = str(output) + ("" if output.suffix else "/")
        command = Command(scene, cache, ["embed", str(images), "-o", target])
        what = f"mae embed to {output.name}"
        command.kill_at_random(what, seconds, 3)
        compare(scene, what, rows_of(output), expected)
        check_output(scene, what, output)
    attack_decoders(scene, cache, images, rows_of, expected)


def attack_decoders(scene: Scene, cache: Path, images: Path, rows_of: Callable[[Path], Rows], expected: Rows) -> None:
    """The processes that decode for `mae embed`, and `mae embed` before them."""
    what, output = "mae embed with processes", scene.folder / "processes.npz"
    command = Command(scene, cache, ["embed", str(images), "-o", str(output), "--decode-processes", "2"])
    for pause in (0.2, 1.5):
        process = command.start()
        decoder = scene.wait_for_child(DECODER, process)
        time.sleep(pause)
        scene.kill_child(decoder)
        code = process.wait(60)
        if code != 2 or "a process that decodes images has ended" not in command.log.read_text():
            scene.seen[f"decode process: exit code {code}"] += 1
            print(command.log.read_text(), file=sys.stderr)
        scene.wait_for_end("decode process")
        scene.check_files("decode process")
    for pause in (0.2, 2.0):
        process = command.start()
        scene.wait_for_child(DECODER, process)
        time.sleep(pause)
        scene.kill(process, what)
    command.finish(what)
    compare(scene, what, rows_of(output), expected)
    check_output(scene, what, output)


def check_output(scene: Scene, what: str, output: Path) -> None:
    """Counts files beside an output, or in it, that only an unfinished run has."""
    paths = [*output.parent.glob(f"{output.name}.*"), *output.parent.glob(f".{output.name}*")]
    if output.is_dir():
        paths += [path for path in output.iterdir() if not path.name.startswith("part-")]
    for path in paths:
        scene.seen[f"{what}: left {path.name}"] += 1


def attack_index(scene: Scene, cache: Path, images: Path) -> None:
    """`mae index` at random moments."""
    if importlib.util.find_spec("lancedb") is None:
        scene.seen["mae index not tried, for want of LanceDB"] += 1
        return
    import lancedb

    def rows_of(output: Path) -> Rows:
        table = lancedb.connect(output.parent).open_table(output.stem).to_arrow()
        return read_rows(scene, output.name, table["file"].to_pylist(), table["vector"].to_pylist())

    whole, output = scene.folder / "whole.lance", scene.folder / "killed.lance"
    seconds = Command(scene, cache, ["index", str(images), "-o", str(whole)]).finish("mae index")
    Command(scene, cache, ["index", str(images), "-o", str(output)]).kill_at_random("mae index", seconds, 3)
    compare(scene, "mae index", rows_of(output), rows_of(whole))


def attack_pretrain(scene: Scene, cache: Path, images: Path) -> None:
    """`mae pretrain` at random moments; with one thread its weights are those of a run that nobody has killed."""
    options = ["--steps", str(STEPS), "--batch-size", "4", "--threads", "1", "--save-minutes", "0.01"]
    options += ["--image-size", "64", "--decoder-depth", "1", "--validation-share", "0", "--log-steps", "1"]

    def command(name: str) -> Command:
        output = ["-o", str(scene.folder / name)]
        return Command(scene, cache, ["pretrain", str(images), *output, *options], ["pretrain", *output, "--resume"])

    seconds = command("whole-run").finish("mae pretrain")
    killed = command("killed-run")
    process = killed.start()
    state = scene.folder / "killed-run"
    end = time.monotonic() + 60
    while not (state.is_dir() and any(state.glob("*state*"))) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    scene.kill(process, "mae pretrain")
    killed.kill_at_random("mae pretrain", seconds, 3)
    weights = [load_file(scene.folder / name / "model.safetensors") for name in ("whole-run", "killed-run")]
    scene.seen["tensors compared"] += len(weights[0])
    if wrong := sum(not np.array_equal(tensor, weights[1].get(name)) for name, tensor in weights[0].items()):
        scene.seen["mae pretrain: other weights"] += wrong
