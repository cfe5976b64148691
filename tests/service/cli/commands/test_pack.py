"""`mae pack`, and the commands that take a pack in place of a folder."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.images import pack_writer
from tests.service.cli.conftest import Mae, run
from tests.support.training import read_metrics, run_command

TRAINING = ("--image-size", "32", "--batch-size", "4", "--steps", "2", "--threads", "1", "--log-steps", "1")


@pytest.fixture(scope="module")
def folder(photographs: Mapping[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs in two classes, small and optimised JPEGs, which a pack keeps as they are."""
    root = tmp_path_factory.mktemp("zoo")
    for number, (name, image) in enumerate(photographs.items()):
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        small = image.convert("RGB").resize((60, 48))
        small.save(root / "ab"[number % 2] / f"{name}.jpg", quality=75, optimize=True)
    return root


@pytest.fixture
def packed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    output = tmp_path / "zoo.pack"
    result = run(capfd, "pack", folder, "-o", output, "--side", "48", "--part-mb", "0.004")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{output}: 4 images in 2 parts, 0.0 MB; 0 were encoded anew, 4 kept as they were\n"
    return output


def losses(path: Path) -> list[str]:
    return [line["loss"] for line in read_metrics(path) if line["loss"]]


@pytest.mark.slow
def test_training_from_a_pack_is_training_from_its_folder(folder: Path, packed: Path, tmp_path: Path) -> None:
    for name, source in (("folder", folder), ("pack", packed)):
        run_command("pretrain", source, "-o", tmp_path / name, *TRAINING)
        run_command("finetune", source, "-o", tmp_path / f"{name}-classes", *TRAINING, "--validation-share", "0")
    assert len(losses(tmp_path / "pack")) == 2
    assert losses(tmp_path / "pack") == losses(tmp_path / "folder")
    assert losses(tmp_path / "pack-classes") == losses(tmp_path / "folder-classes")
    run_command("pretrain", "-o", tmp_path / "pack", "--resume")


@pytest.mark.slow
def test_fine_tuning_from_a_pack_in_memory(packed: Path, tmp_path: Path) -> None:
    run_command("finetune", packed, "-o", tmp_path / "files", *TRAINING, "--validation-share", "0.5")
    run_command("finetune", packed, "-o", tmp_path / "memory", *TRAINING, "--validation-share", "0.5", "--in-memory")
    memory, files = (read_metrics(tmp_path / name) for name in ("memory", "files"))
    for key in ("loss", "val_loss"):
        values, others = ([float(line[key]) for line in lines if line[key]] for lines in (memory, files))
        assert values == pytest.approx(others, rel=0.02)


def test_vectors_of_a_pack_are_those_of_its_folder(
    mae: Mae, folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mae("embed", packed, "-o", "pack.npz") == (0, "", "mae: 4 embedded, 0 already stored, 0 skipped: pack.npz\n")
    assert mae("embed", folder, "-o", "folder.npz").code == 0
    with np.load("pack.npz") as pack, np.load("folder.npz") as files:
        names = [str(path).replace(str(folder), str(packed)) for path in files["paths"]]
        assert pack["paths"].tolist() == names
        assert np.array_equal(pack["vectors"], files["vectors"])


def test_what_cannot_be_packed_is_named(folder: Path, packed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "pack", folder, "-o", packed) == (
        2,
        "",
        f"mae: {packed} exists: remove that pack first, or choose another name\n",
    )
    other = packed.with_name("other.pack")
    assert run(capfd, "pack", packed, "-o", other) == (2, "", f"mae: {packed} is no folder\n")
    torn = packed.with_name("torn")
    shutil.copytree(folder, torn)
    (torn / "a" / "torn.jpg").write_bytes(b"no image")
    result = run(capfd, "pack", torn, "-o", other)
    assert result.code == 1 and "4 images in 1 part," in result.out
    assert f"{torn}/a/torn.jpg: " in result.err


def test_a_pack_without_a_part_trains_nothing(packed: Path, tmp_path: Path) -> None:
    packed.with_name("zoo.pack.001").unlink()
    err = run_command("pretrain", packed, "-o", tmp_path / "run", *TRAINING, code=2)
    assert "zoo.pack.001 is missing: " in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["ZipInfo", "atomic_write"])
def test_a_signal_leaves_no_file(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    moment: str,
) -> None:
    step, calls = getattr(pack_writer, moment), 0

    def interrupted_step(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3 or moment == "atomic_write":
            os.kill(os.getpid(), number)
        return step(*arguments, **options)

    monkeypatch.setattr(pack_writer, moment, interrupted_step)
    monkeypatch.setattr("service.cli.commands.pack.available_cpus", lambda: 1)
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, default)  # it may be ignored here: the suite may run under nohup
    try:
        result = run(capfd, "pack", folder, "-o", tmp_path / "zoo.pack", "--side", "48", "--part-mb", "0.004")
        after = signal.getsignal(number)
    finally:
        signal.signal(number, before)
    assert (result.code, result.out) == (128 + number, "")
    assert f"ended by {number.name}: nothing was written" in result.err
    assert list(tmp_path.iterdir()) == []
    assert after == default


@pytest.mark.parametrize("largest", [1000, 3200])
def test_a_disk_without_room_is_named_and_nothing_stays(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], largest: int
) -> None:
    """A limit on the size of files stands for the disk: of the first image, and of the directory at the end."""
    output, before = tmp_path / "zoo.pack", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        result = run(capfd, "pack", folder, "-o", output, "--side", "48")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith(f"mae: {output}: File too large\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = pack_writer.atomic_write

    def interrupted_step(path: Path, data: bytes, *, durable: bool) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        step(path, data, durable=durable)

    monkeypatch.setattr(pack_writer, "atomic_write", interrupted_step)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(capfd, "pack", folder, "-o", tmp_path / "zoo.pack").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
