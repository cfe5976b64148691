"""The wheel, made by the project's own build backend, holds all that the code needs and nothing else."""

import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "service")
# Read in the repository, not by the code.
DOCUMENTS = ("model/README.md", "model/engines/README.md", "service/README.md", "service/*/README.md", "*.png")
# A module without which no wheel would be right, and one data file of each kind: or the comparison has stopped seeing.
KNOWN = {
    "model/engines/openvino/build.py",
    "model/py.typed",
    "model/weights/mae_tiny.safetensors",
    "model/weights/mae_tiny/openvino/encoder.xml",
    "service/api/routes/embed.py",
    "service/benchmark/load.lua",
    "service/py.typed",
}


def needed() -> set[str]:
    """Every module and data file in the repository, relative to its root."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}
    return {name for name in names if not any(fnmatch(name, pattern) for pattern in DOCUMENTS)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_it_holds_every_module_and_data_file(contents: set[str]) -> None:
    files = needed()
    assert files >= KNOWN
    assert sorted(files - contents) == []


def test_it_holds_nothing_else(contents: set[str]) -> None:
    assert sorted(contents - needed()) == []


def test_its_version_and_its_command(wheel: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert wheel.name == f"mae_serve-{version}-py3-none-any.whl"
    with ZipFile(wheel) as archive:
        commands = archive.read(f"mae_serve-{version}.dist-info/entry_points.txt").decode()
    assert commands.split() == ["[console_scripts]", "mae", "=", "service.cli.main:main"]


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without __init__ would be left out by tools that know regular packages alone, as mypy's are."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()] == []
