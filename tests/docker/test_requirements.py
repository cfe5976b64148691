"""What the image installs is what the project asks for."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def printed(wanted: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docker/requirements.py", wanted]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def wheel_asks_for(*extras: str) -> set[tuple[str, str]]:
    """What setuptools wrote into the metadata of the installed project."""
    asked = [Requirement(line) for line in requires("mae-serve") or []]
    active = (one for one in asked if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras))
    return {(str(one.name), str(one.specifier)) for one in active if one.name != "mae-serve"}


@pytest.mark.parametrize(("wanted", "extras"), [("", ()), ("hub", ("hub",)), ("hub,parquet", ("hub", "parquet"))])
def test_the_same_as_the_wheel(wanted: str, extras: tuple[str, ...]) -> None:
    lines = printed(wanted).stdout.splitlines()
    found = {(one.name, str(one.specifier)) for one in map(Requirement, lines)}
    assert found == wheel_asks_for(*extras)
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
    for asked in map(Requirement, EXTRAS[extra]):
        assert pins[asked.name] == asked.specifier


def test_the_version_on_the_label() -> None:
    """The Dockerfile names it where nobody passes it, and the engine that is built in asks for it."""
    defaults = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(defaults) == {version("mae-serve")}
