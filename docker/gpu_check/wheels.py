"""Packages for a host without a network: fetched here into parts, put together and installed there.

`docker/gpu_wheels.sh` runs this file; it needs Python 3.11 with pip, and nothing else but Debian's tools for wrk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20
ARCHIVE, SUMS, WRK = "gpu-wheels.tar", "SHA256SUMS", "wrk"
HOST = (
    *("torch", "triton", "timm", "transformers", "pytest", "httpx", "safetensors", "scikit-learn", "scikit-image"),
    *("typer", "rich", "prometheus-client", "numpy", "scipy", "pillow", "packaging", "pyyaml"),
)
"""What a host is taken to have unless --host says otherwise: PyTorch for CUDA and the usual packages beside it."""
NEVER = re.compile(r"torch|torchvision|torchaudio|triton|nvidia-(?!ml-py$).*|cuda-.*")
"""Packages that belong to the host's PyTorch, and are neither carried nor installed."""
CPU_ONLY = frozenset({"openvino"})
"""Requirements of the project that a GPU does not need; `--with` carries them all the same."""
TEST_TOOLS = ("pytest>=8.3", "httpx>=0.28")
GLIBC = range(5, 40)
"""Minor versions of glibc 2 whose wheels are taken: up to that of Ubuntu 24.04, since pip matches each one exactly."""
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


class CarryError(Exception):
    """The packages cannot be fetched, put together or installed; the message says why."""


def normalise(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_names(text: str) -> set[str]:
    """The names in the output of `pip list` or `pip freeze`, or in a list with one name a line."""
    names = set()
    for line in text.splitlines():
        match = re.match(r"[A-Za-z0-9][\w.-]*", line.strip())
        if match and not re.match(r"Package\s+Version", line):
            names.add(normalise(match[0]))
    return names


def requirements_to_carry(pyproject: Path, host: Collection[str], extra: Sequence[str]) -> list[str]:
    """The project's requirements and the tools of its tests, less those that the host has or that no GPU needs."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [
        line
        for line in (*project["dependencies"], *TEST_TOOLS)
        if (name := requirement_name(line)) not in host and name not in CPU_ONLY and not NEVER.fullmatch(name)
    ]
    return [*wanted, *extra]


def requirement_name(requirement: str) -> str:
    """The package that a requirement names."""
    return normalise(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def fetch_wheels(requirements: Sequence[str], host: Collection[str], python: str, folder: Path) -> list[str]:
    """Downloads the wheels of `requirements`, and of all that they need and the host lacks; their names and versions.

    Raises:
        CarryError: pip cannot resolve or download them.
    """
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in reversed(GLIBC)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    target += [argument for platform in platforms for argument in ("--platform", platform)]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        options = ["--quiet", "--dry-run", "--ignore-installed", "--target", scratch, "--report", str(report)]
        _pip(["install", *options, *target, *requirements])
        entries = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    asked = {requirement_name(line) for line in requirements}
    pins = sorted(
        f"{entry['name']}=={entry['version']}"
        for entry in entries
        if (name := normalise(entry["name"])) in asked or not (name in host or NEVER.fullmatch(name))
    )
    _pip(["download", "--quiet", "--no-deps", "--dest", str(folder), *target, *pins])
    return pins


def add_wrk(folder: Path, program: Path | None) -> None:
    """Makes `folder` with wrk and LuaJIT's library: those of `program`, or else of Debian's packages.

    Raises:
        CarryError: they cannot be fetched.
    """
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        if program is None:
            _run(["apt-get", "download", "-qq", "wrk", "libluajit-5.1-2"], Path(scratch))
            for package in Path(scratch).glob("*.deb"):
                _run(["dpkg-deb", "-x", str(package), scratch], Path(scratch))
            program = Path(scratch) / "usr/bin/wrk"
            libraries = list(Path(scratch).glob("usr/lib/*/libluajit-5.1.so.2"))
        else:
            linked = _run(["ldd", str(program)], Path(scratch))
            libraries = [Path(path) for path in re.findall(r"=> (\S*libluajit\S*)", linked)]
        for file in (program, *libraries):
            shutil.copy(file, folder)  # follows the link to the library itself
    (folder / "wrk").rename(folder / "wrk-program")
    script = folder / "wrk"
    script.write_text(
        "#!/bin/sh\n"
        'here=$(dirname "$(readlink -f "$0")")\n'
        'LD_LIBRARY_PATH=$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$here/wrk-program" "$@"\n'
    )
    script.chmod(0o755)


def write_parts(content: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Writes all files of `content` to `folder` as one archive in parts, with the SHA-256 of each and of the whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob(f"{ARCHIVE}.*"), folder / SUMS):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(content, arcname=".")
        archive.seek(0)
        whole, sums = hashlib.sha256(), []
        parts: list[Path] = []
        while data := archive.read(part_bytes):
            whole.update(data)
            parts.append(folder / f"{ARCHIVE}.{len(parts):02}")
            parts[-1].write_bytes(data)
            sums.append(f"{hashlib.sha256(data).hexdigest()}  {parts[-1].name}\n")
    (folder / SUMS).write_text("".join([*sums, f"{whole.hexdigest()}  {ARCHIVE}\n"]))
    return parts


def join_parts(parts: Path, folder: Path) -> None:
    """Checks the parts in `parts`, and unpacks them together into `folder`.

    Raises:
        CarryError: a part is missing or is not what was written.
    """
    try:
        lines = (parts / SUMS).read_text().splitlines()
    except OSError as error:
        raise CarryError(f"{parts} holds no {SUMS}") from error
    try:
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        whole_digest = sums.pop(ARCHIVE)
    except (ValueError, KeyError) as error:
        raise CarryError(f"{parts / SUMS} is not what was written") from error
    if missing := [name for name in sums if not (parts / name).is_file()]:
        raise CarryError(f"{parts} lacks {', '.join(missing)} of {len(sums)} parts")
    whole = hashlib.sha256()
    with tempfile.TemporaryFile() as archive:
        for name, digest in sums.items():
            data = (parts / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise CarryError(f"{parts / name} is not what was written: its SHA-256 differs")
            whole.update(data)
            archive.write(data)
        if whole.hexdigest() != whole_digest:
            raise CarryError(f"the parts in {parts} do not belong together: the SHA-256 of the whole differs")
        archive.seek(0)
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(folder, filter="data")


def install(carried: Path, site: Path, installed: Callable[[str], str] = version) -> list[str]:
    """Installs the wheels in `carried` into the folder `site`, but none that the host has; what was done, in words.

    Raises:
        CarryError: pip refuses a wheel.
    """
    wheels, lines = [], []
    for wheel in sorted(carried.glob("*.whl")):
        name, carried_version = wheel.name.split("-")[:2]
        if NEVER.fullmatch(normalise(name)):
            lines.append(f"{name} {carried_version}: refused, the host's PyTorch stays as it is")
            continue
        try:
            lines.append(f"{name} {carried_version}: not installed, the host has {installed(normalise(name))}")
        except PackageNotFoundError:
            wheels.append(str(wheel))
            lines.append(f"{name} {carried_version}: installed")
    site.mkdir(parents=True, exist_ok=True)
    if wheels:
        _pip(["install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site), *wheels])
    return lines


def add_project_metadata(pyproject: Path, site: Path, installed: Callable[[str], str] = version) -> None:
    """Writes name and version of the project into `site`, since a checkout that is not installed has none."""
    project = tomllib.loads(pyproject.read_text())["project"]
    try:
        installed(project["name"])
    except PackageNotFoundError:
        folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(METADATA.format(name=project["name"], version=project["version"]))


def _pip(arguments: Sequence[str]) -> None:
    """Runs this Python's pip, or that of the Python which this environment was made from: an image may have none."""
    python = sys.executable
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        python = str(Path(sys.base_prefix) / "bin" / "python3")
    _run([python, "-m", "pip", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CarryError(f"there is no {command[0]}") from error
    if ended.returncode:
        raise CarryError(f"{' '.join(command[:4])} … has failed:\n{ended.stderr.strip()[-2000:]}")
    return ended.stdout


def _size(paths: Iterable[Path]) -> str:
    return f"{sum(path.stat().st_size for path in paths) / MEBIBYTE:.1f} MiB"


class _Parser(argparse.ArgumentParser):
    """A parser that refuses an argument in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _part_bytes(text: str) -> int:
    try:
        return max(0, int(float(text) * MEBIBYTE)) or _refuse(f"{text} MiB hold nothing")
    except (ValueError, OverflowError):  # neither a number, nor a finite one
        _refuse(f"{text} is no number of MiB")


def _read_host(text: str) -> set[str]:
    try:
        return read_names(Path(text).read_text())
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"{text} cannot be read: {error.strerror if isinstance(error, OSError) else 'it is no text'}")


def _output_folder(text: str) -> Path:
    if Path(text).exists() and not Path(text).is_dir():
        _refuse(f"{text} is no folder")
    return Path(text)


def _refuse(message: str) -> NoReturn:
    raise argparse.ArgumentTypeError(message)


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Fetches or joins; the exit code: 1 if that fails, 2 for an argument that cannot be, 130 after Ctrl-C."""
    parser = _Parser(
        prog="gpu_wheels.sh",
        description="Fetches what docker/gpu_check.sh needs on a host without a network, in parts; --join puts the "
        "parts together there, which gpu_check.sh also does by itself.",
    )
    parser.add_argument("--python", default="3.12", help="version of the host's Python (default: 3.12)")
    parser.add_argument(
        "-o", "--output", type=_output_folder, default=Path("gpu-wheels"), help="folder (default: gpu-wheels)"
    )
    parser.add_argument(
        "--host",
        type=_read_host,
        default=set(HOST),
        metavar="FILE",
        help="the host's `pip list`; by default PyTorch and what is usual beside it",
    )
    parser.add_argument(
        "--with", dest="extra", action="append", default=[], metavar="REQUIREMENT", help="carry this, too"
    )
    parser.add_argument("--wrk", type=Path, help="the program wrk to carry; by default Debian's package")
    parser.add_argument(
        "--part-mb", type=_part_bytes, default="20", metavar="MIB", help="most MiB of a part (default: 20)"
    )
    parser.add_argument("--join", type=Path, metavar="PARTS", help="put the parts in this folder together in --output")
    arguments = parser.parse_args(arguments_given)
    try:
        if arguments.join:
            join_parts(arguments.join, arguments.output)
            print(f"{arguments.output}: {_size(path for path in arguments.output.rglob('*') if path.is_file())}")
            return 0
        requirements = requirements_to_carry(ROOT / "pyproject.toml", arguments.host, arguments.extra)
        with tempfile.TemporaryDirectory() as scratch:
            content = Path(scratch)
            pins = fetch_wheels(requirements, arguments.host, arguments.python, content)
            add_wrk(content / WRK, arguments.wrk)
            parts = write_parts(content, arguments.output, arguments.part_mb)
    except CarryError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # of --output or --wrk
        parser.error(f"{error.filename or arguments.output}: {error.strerror}")
    except KeyboardInterrupt:
        print("ended by SIGINT", file=sys.stderr)
        return 130
    print(f"{arguments.output}: {', '.join(pins)}, and wrk: {len(parts)} parts, {_size(parts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
