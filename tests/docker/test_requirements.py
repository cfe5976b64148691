"""What the image installs is what the project asks for."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def printed(wanted: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docker/requirements.py", wanted]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> PathDistribution:
    """What setuptools makes of pyproject.toml: that of the installed project may be older."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in ("model", "service"):
        (folder / package).mkdir()
    code = "from setuptools.build_meta import prepare_metadata_for_build_wheel as make; make('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    (made,) = folder.glob("*.dist-info")
    return PathDistribution(made)


@pytest.mark.parametrize("extras", [(), ("hub",), ("hub", "parquet")])
def test_the_same_as_the_wheel(metadata: PathDistribution, extras: tuple[str, ...]) -> None:
    asked = [Requirement(line) for line in metadata.requires or []]
    active = [one for one in asked if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)]
    found = [Requirement(line) for line in printed(",".join(extras)).stdout.splitlines()]
    assert {(one.name, str(one.specifier)) for one in found} == {(one.name, str(one.specifier)) for one in active}
    assert len(found) > 10


def test_an_extra_that_names_others() -> None:
    lines = set(printed("dev").stdout.splitlines())
    assert lines > set(printed("hub,parquet").stdout.splitlines())
    assert {Requirement(line).name for line in lines} >= {"huggingface_hub", "pyarrow", "pytest"}
    assert not any("mae-serve" in line for line in lines)


def test_what_building_needs() -> None:
    assert printed("--build").stdout.splitlines() == ["setuptools>=77"]


def test_an_extra_that_is_none() -> None:
    answer = printed("hub,tensort")
    assert answer.returncode == 1
    assert "no extra 'tensort'" in answer.stderr and "hub" in answer.stderr


@pytest.mark.parametrize("extra", ["tensorrt", "tensorrt-rtx"])
def test_pins_of_the_gpu_image_agree_with_the_extras(extra: str) -> None:
    lines = (ROOT / "docker/constraints-gpu.txt").read_text().splitlines()
    pins = {pin.name: pin.specifier for pin in (Requirement(line) for line in lines if line[:1] != "#")}
    for asked in map(Requirement, PYPROJECT["project"]["optional-dependencies"][extra]):
        assert pins[asked.name] == asked.specifier


def test_the_version_on_the_label() -> None:
    """The Dockerfile names it where nobody passes it, and the engine that is built in asks for it."""
    defaults = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(defaults) == {PYPROJECT["project"]["version"]}
