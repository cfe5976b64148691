"""`mae embed --ray`: the rows of `mae embed`, in the same order and with the same bits."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from service.cli.main import main
from tests.support.exported import CHELSEA

Run = Callable[..., int]
OF_RAY = re.compile(r"\[[\d-]+ [\d:,]+ .*\] \w+\.cc:\d+: ")
"""A line of Ray's C++ code, which says at least that its log has a level."""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


COLUMNS = ["path", "file", "vector", "error", "size", "modified"]


@pytest.fixture
def run(ray: Any, probe: Path, engine_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `mae embed` in this process, which is connected to the cluster; returns the exit code."""
    for name in [name for name in os.environ if name.startswith("MAE_")]:
        monkeypatch.delenv(name)
    settings = {"WEIGHTS": probe, "ENGINE_CACHE": engine_cache, "PRECISION": "fp32", "MAX_BATCH": 4}
    for name, value in settings.items():
        monkeypatch.setenv(f"MAE_{name}", str(value))

    def embed(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["embed", *map(str, arguments)])
        return int(ended.value.code or 0)

    return embed


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, Image.Image]) -> Path:
    """150 photographs of several sizes, some turned and one damaged, an archive and a compressed one."""
    folder = tmp_path_factory.mktemp("collection")
    for number in range(150):
        photograph = list(photographs.values())[number % 4].convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        size = (230 + 7 * (number % 11), 260 + 5 * (number % 7))
        photograph.resize(size).rotate(number).save(folder / f"{number:03}.jpg", exif=exif)
    (folder / "042.jpg").write_bytes((folder / "042.jpg").read_bytes()[:300])
    for name in ("plain.tar", "packed.tar.gz"):
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for number in range(3):
                archive.add(folder / f"{number:03}.jpg", f"{name}-{number}.jpg")
    return folder


def table(folder: Path) -> pa.Table:
    return pa.concat_tables([pa.parquet.read_table(shard) for shard in sorted(folder.glob("part-*.parquet"))])


def test_rows_and_bits_are_those_without_ray(run: Run, collection: Path, tmp_path: Path) -> None:
    sources = [collection, collection / "plain.tar", collection / "packed.tar.gz"]
    assert run(*sources, "-o", f"{tmp_path}/alone/", "--pool", "cls") == 1  # one is damaged
    assert run(*sources, "-o", f"{tmp_path}/ray/", "--pool", "cls", "--ray") == 1
    expected, found = table(tmp_path / "alone"), table(tmp_path / "ray")
    assert expected.num_rows == 156
    assert found.schema.metadata == expected.schema.metadata
    for column in COLUMNS:
        assert found[column].equals(expected[column]), column


def test_workers_fetch_what_is_remote(run: Run, collection: Path, tmp_path: Path) -> None:
    handler = partial(QuietHandler, directory=str(collection))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        sources = [f"{url}/{name}" for name in ("000.jpg", "nothing.jpg", "001.jpg", "packed.tar.gz")]
        try:
            assert run(*sources, "-o", f"{tmp_path}/alone/") == 1
            assert run(*sources, "-o", f"{tmp_path}/ray/", "--ray") == 1
        finally:
            server.shutdown()
    expected, found = table(tmp_path / "alone"), table(tmp_path / "ray")
    assert expected.num_rows == 6
    for column in COLUMNS:
        assert found[column].equals(expected[column]), column


def test_a_part_of_the_patches_is_drawn_by_the_same_seed_everywhere(run: Run, collection: Path, tmp_path: Path) -> None:
    sources = [collection / "000.jpg", collection / "001.jpg"]
    options = ["--keep", "0.25", "--seed", "3", "--normalize"]
    assert run(*sources, "-o", f"{tmp_path}/alone/", *options) == 0
    assert run(*sources, "-o", f"{tmp_path}/ray/", *options, "--ray") == 0
    assert table(tmp_path / "ray")["vector"].equals(table(tmp_path / "alone")["vector"])


def test_a_run_goes_on_where_another_has_ended(run: Run, collection: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for number in (0, 1):
        shutil.copy(collection / f"{number:03}.jpg", some)
    assert run(some, "-o", f"{tmp_path}/out/") == 0
    shutil.copy(collection / "002.jpg", some)
    assert run(some, "-o", f"{tmp_path}/out/", "--ray") == 0
    assert [Path(path).name for path in table(tmp_path / "out")["path"].to_pylist()] == [
        "000.jpg",
        "001.jpg",
        "002.jpg",
    ]


@pytest.mark.parametrize(
    ("machines", "gpus", "resources"),
    [
        ([2], 0, (1, 0, 1)),
        ([16], 0, (5, 0, 3)),
        ([0, 8, 64], 0, (7, 0, 10)),
        ([16], 2, (1, 1, 2)),
    ],
)
def test_engines_leave_a_cpu_of_each_machine_for_decoding(
    monkeypatch: pytest.MonkeyPatch, machines: list[int], gpus: int, resources: tuple[float, float, int]
) -> None:
    from service.cluster import data
    from service.settings import Settings

    nodes = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus in machines]
    monkeypatch.setattr(data.ray, "nodes", lambda: nodes)
    assert data.choose_resources(Settings()) == data.EngineResources(*resources)
    assert data.choose_resources(Settings(backend="openvino")).num_gpus == 0


def test_a_command_of_its_own_starts_ray_and_ends_it(
    probe: Path, engine_cache: Path, collection: Path, tmp_path: Path
) -> None:
    arguments = [collection / "000.jpg", collection / "042.jpg", "-o", f"{tmp_path}/out/", "--ray"]
    options = ["--ray-address", "local", "--weights", probe, "--engine-cache", engine_cache, "--precision", "fp32"]
    command = [
        sys.executable,
        "-c",
        "from service.cli.main import main; main()",
        "embed",
        *map(str, [*arguments, *options]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not OF_RAY.match(line)]
    assert lines[0].startswith(f"mae: {collection / '042.jpg'} cannot be decoded: ")
    assert lines[-1] == f"mae: 1 embedded, 0 already stored, 1 skipped: {tmp_path}/out/"
    assert len(lines) == 2, done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ray-engines", "2"], "--ray-engines needs --ray"),
        (["--ray", "--decode-processes", "2"], "--decode-processes has no meaning with --ray"),
        (["--ray", "--weights", "/nowhere.safetensors"], "/nowhere.safetensors"),
    ],
)
def test_mistakes_are_named_in_a_line(
    run: Run, collection: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    capfd.readouterr()
    assert run(collection / "000.jpg", "-o", f"{tmp_path}/out/", *options) == 2
    captured = capfd.readouterr()
    [line] = [line for line in captured.err.splitlines() if line.startswith("mae: ")]
    assert sentence in line
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_engines_of_other_spaces_are_refused(ray: Any, probe: Path, engine_cache: Path) -> None:
    from service.cli.errors import describe_file_error
    from service.cli.local_pipeline import open_pipeline
    from service.cluster.data import EmbeddingJob, EngineActor, EngineResources, describe_engine
    from service.errors import EngineLost
    from service.parameters import EmbedParameters
    from service.settings import Settings

    settings = Settings(weights=str(probe), engine_cache=engine_cache, precision="fp32", max_batch=4)
    resources = EngineResources(0, 0, 1)
    info, _ = describe_engine(settings, resources)
    other = info.model_copy(update={"computes": "bf16"})
    job = EmbeddingJob(settings, EmbedParameters(), lambda images: [], describe_file_error, open_pipeline)
    with pytest.raises(EngineLost, match=r"compute in different spaces: .*bf16.*fp32"):
        EngineActor(other, job, resources)


@pytest.mark.parametrize("by_variable", [False, True])
def test_an_address_without_a_cluster_is_named_at_once(
    by_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray would try for minutes"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        options = [] if by_variable else ["--ray-address", address]
        if by_variable:
            monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(SystemExit) as ended:
            main(["embed", str(CHELSEA), "-o", str(tmp_path / "out.npz"), "--ray", *options])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"mae: there is no Ray cluster at {address}: [Errno 111] Connection refused\n"
