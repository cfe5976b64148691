"""Step c: the tests marked gpu have rows as they end, and run on torch alone where TensorRT is missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_check import gpu_tests
from gpu_check.context import Context
from gpu_check.gpu_tests import run_tests

from model.engines.cuda import identity
from tests.docker.gpu_check.conftest import planned, rows

ROOT = Path(__file__).parents[3]
SUITE = """
import pytest

def test_that_passes(): pass
def test_that_fails(): assert 1 == 2, "parity is lost"
def test_that_is_skipped(): pytest.skip("no TensorRT")

@pytest.fixture
def broken(): raise RuntimeError("no device")

def test_whose_fixture_fails(broken): pass
"""


def environment_of(context: Context) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "docker"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **context.to_environment(), "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.live
def test_each_test_has_a_row(on_gpu: Context, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "gpu_check.gpu_tests", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, env=environment_of(on_gpu), check=False, capture_output=True)
    found = {name.rpartition("::")[2]: row for name, row in rows(on_gpu).items()}
    assert {name.rpartition("::")[2] for name in planned(on_gpu)} == set(found)
    assert {name: row["failed"] for name, row in found.items()} == {
        "test_that_passes": False,
        "test_that_fails": True,
        "test_that_is_skipped": False,
        "test_whose_fixture_fails": True,
        "all tests": False,
    }
    assert "parity is lost" in found["test_that_fails"]["note"]
    assert found["test_that_is_skipped"]["note"] == "left out: no TensorRT"
    assert found["all tests"]["note"] == "2 failed, 1 passed, 1 skipped"
    table = on_gpu.report.table.read_text()
    assert "test_that_fails" in table and "test_that_passes" not in table


def test_on_a_gpu_the_tests_choose_it_themselves(on_gpu: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options["env"]))
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(gpu_tests.subprocess, "run", run)
    assert run_tests(on_gpu) == 5
    ((command, environment),) = asked
    assert "--gpu-no-compile" in command, "compiling takes longer than this step may"
    assert "--gpu-backend" not in command and command[command.index("--gpu-batches") + 1] == "7"
    assert environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] == "1"


@pytest.mark.live
def test_without_tensorrt_they_run_on_torch_alone_and_say_so() -> None:
    if identity.installed_distribution():
        pytest.skip("TensorRT is installed here")
    options = ["tests/gpu/test_engines.py", "-k", "test_parity and second", "--gpu-backend", "cuda", "-rs"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert "torch is the only backend here: neither torch-tensorrt nor torch-tensorrt-rtx is installed" in ended.stdout
    assert "3 skipped" in ended.stdout
