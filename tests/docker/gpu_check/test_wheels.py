"""Packages for a host without a network: which are carried, the parts and their checks, and what is installed there."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from gpu_check import wheels
from gpu_check.__main__ import prepare_site, step_environment
from gpu_check.context import Context
from gpu_check.wheels import (
    CarryError,
    add_project_metadata,
    add_wrk,
    fetch_wheels,
    install,
    join_parts,
    main,
    read_names,
    requirements_to_carry,
    write_parts,
)

ROOT = Path(__file__).parents[3]
PYPROJECT = ROOT / "pyproject.toml"


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


def write_wheel(folder: Path, name: str, version: str = "1.0") -> None:
    """A wheel with one module, which tells its version."""
    info = f"{name}-{version}.dist-info"
    with ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    "text",
    [
        "Package         Version\n--------------- -------\nPrometheus_Client 0.21\ntorch           2.11.0+cu130\n",
        "prometheus-client==0.21\ntorch==2.11.0\n",
        "prometheus.client\ntorch\n\n",
    ],
    ids=["list", "freeze", "names"],
)
def test_every_list_of_pip_is_read(text: str) -> None:
    assert read_names(text) == {"prometheus-client", "torch"}


def test_what_the_host_has_and_what_no_gpu_needs_stays_here() -> None:
    carried = requirements_to_carry(PYPROJECT, {"rich", "typer", "pytest"}, ["openvino"])
    names = [wheels.requirement_name(line) for line in carried]
    assert {"fastapi", "uvicorn", "orjson", "isal", "multipart", "tensorboardx", "httpx"} <= set(names)
    assert not {"torch", "rich", "typer", "pytest"} & set(names)
    assert names.count("openvino") == 1, "only because it was asked for"
    assert "nvidia-ml-py" in names, "which reads the driver, and is no part of PyTorch"


def test_pip_is_asked_for_the_hosts_python_and_never_for_a_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pip(arguments: list[str]) -> None:
        asked.append(arguments)
        if "--report" in arguments:
            named = ("fastapi", "Pillow", "starlette", "torch", "nvidia-cublas", "numpy")
            entries = ",".join(f'{{"metadata": {{"name": "{name}", "version": "1.0"}}}}' for name in named)
            Path(arguments[arguments.index("--report") + 1]).write_text(f'{{"install": [{entries}]}}')

    monkeypatch.setattr(wheels, "_pip", pip)
    assert fetch_wheels(["fastapi>=0.1"], {"pillow", "numpy"}, "3.12", tmp_path) == ["fastapi==1.0", "starlette==1.0"]
    for arguments in asked:
        assert arguments[arguments.index("--python-version") + 1] == "3.12" and "--only-binary=:all:" in arguments
    assert "--no-deps" in asked[1] and asked[1][-2:] == ["fastapi==1.0", "starlette==1.0"]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of three parts."""
    content = tmp_path / "content"
    (content / "wrk").mkdir(parents=True)
    (content / "wrk" / "wrk").write_text("#!/bin/sh\n")
    (content / "wrk" / "wrk").chmod(0o755)
    (content / "large.whl").write_bytes(os.urandom(25_000))
    written = write_parts(content, tmp_path / "parts", 20_000)
    assert len(written) == 3 and all(path.stat().st_size <= 20_000 for path in written)
    return tmp_path / "parts"


class TestParts:
    def test_they_are_put_together(self, parts: Path, tmp_path: Path) -> None:
        join_parts(parts, tmp_path / "joined")
        content = tmp_path / "content"
        assert (tmp_path / "joined/large.whl").read_bytes() == (content / "large.whl").read_bytes()
        assert os.access(tmp_path / "joined/wrk/wrk", os.X_OK)

    @pytest.mark.live
    def test_coreutils_agree_on_the_sums(self, parts: Path) -> None:
        check = ["sha256sum", "--check", "--ignore-missing", "--strict", "SHA256SUMS"]
        assert subprocess.run(check, cwd=parts, capture_output=True, check=False).returncode == 0

    def test_a_part_that_is_missing_is_named(self, parts: Path, tmp_path: Path) -> None:
        (parts / "gpu-wheels.tar.01").unlink()
        with pytest.raises(CarryError, match=r"lacks gpu-wheels\.tar\.01 of 3 parts"):
            join_parts(parts, tmp_path / "joined")

    def test_a_part_that_was_changed_is_named(self, parts: Path, tmp_path: Path) -> None:
        data = bytearray((parts / "gpu-wheels.tar.00").read_bytes())
        data[5000] ^= 1
        (parts / "gpu-wheels.tar.00").write_bytes(data)
        with pytest.raises(CarryError, match=r"gpu-wheels\.tar\.00 is not what was written"):
            join_parts(parts, tmp_path / "joined")
        assert not (tmp_path / "joined").exists()

    def test_a_folder_without_sums(self, tmp_path: Path) -> None:
        with pytest.raises(CarryError, match="holds no SHA256SUMS"):
            join_parts(tmp_path, tmp_path / "joined")

    def test_old_parts_are_removed(self, parts: Path, tmp_path: Path) -> None:
        (tmp_path / "content/large.whl").write_bytes(b"small")
        write_parts(tmp_path / "content", parts, 20_000)
        assert sorted(path.name for path in parts.iterdir()) == ["SHA256SUMS", "gpu-wheels.tar.00"]


@pytest.mark.live
class TestInstall:
    def test_what_the_host_lacks_is_installed_and_nothing_else(self, tmp_path: Path) -> None:
        for name in ("carried_one", "carried_two", "torch", "nvidia_cublas"):
            write_wheel(tmp_path, name)

        def installed(name: str) -> str:
            if name == "carried-two":
                return "0.5"
            raise PackageNotFoundError(name)

        lines = install(tmp_path, tmp_path / "site", installed)
        assert "carried_one 1.0: installed" in lines
        assert "carried_two 1.0: not installed, the host has 0.5" in lines
        assert sum("refused" in line for line in lines) == 2
        assert {found.name for found in distributions(path=[str(tmp_path / "site")])} == {"carried_one"}

    def test_the_steps_find_what_was_carried_and_the_checkout(
        self, on_gpu: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = tmp_path / "content"
        (content / "wrk").mkdir(parents=True)
        write_wheel(content, "carried_one")
        (content / "wrk" / "wrk").write_text("#!/bin/sh\necho the carried one\n")
        (content / "wrk" / "wrk").chmod(0o755)
        write_parts(content, tmp_path / "parts", 1000)
        monkeypatch.setenv("MAE_PORT", "1")
        prepare_site(tmp_path / "parts", on_gpu.work / "site")
        program = "import carried_one, model, gpu_check, os; print(model.__file__, os.environ.get('MAE_PORT'))"
        told = subprocess.check_output([sys.executable, "-P", "-c", program], env=step_environment(on_gpu), text=True)
        assert told.split() == [str(ROOT / "model/__init__.py"), "None"]
        assert subprocess.check_output(["wrk"], env=step_environment(on_gpu), text=True) == "the carried one\n"

    def test_a_wheel_that_pip_refuses(self, tmp_path: Path) -> None:
        (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no archive")
        with pytest.raises(CarryError, match="has failed"):
            install(tmp_path, tmp_path / "site", absent)


def test_a_checkout_that_is_not_installed_gets_its_version(tmp_path: Path) -> None:
    add_project_metadata(PYPROJECT, tmp_path, absent)
    (found,) = distributions(path=[str(tmp_path)])
    assert found.name == "mae-serve" and f'version = "{found.version}"' in PYPROJECT.read_text()


@pytest.mark.live
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")
def test_wrk_runs_from_where_it_was_carried_to(tmp_path: Path) -> None:
    program = shutil.which("wrk")
    assert program
    add_wrk(tmp_path / "wrk", Path(program))
    ended = subprocess.run([tmp_path / "wrk/wrk", "--version"], capture_output=True, text=True, check=False)
    assert "wrk" in ended.stdout and not ended.stderr
    assert any("luajit" in path.name for path in (tmp_path / "wrk").iterdir())


@pytest.mark.live
def test_the_shell_command_joins(parts: Path, tmp_path: Path) -> None:
    command = [ROOT / "docker/gpu_wheels.sh", "--join", parts, "-o", tmp_path / "joined"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "joined/large.whl").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--part-mb", "0"], "0 MiB hold nothing"),
        (["--part-mb=-3"], "-3 MiB hold nothing"),
        (["--part-mb", "nan"], "nan is no number of MiB"),
        (["--part-mb", "inf"], "inf is no number of MiB"),
        (["--host", f"{__file__}s"], f"{__file__}s cannot be read: No such file or directory"),
        (["--host", "/"], "/ cannot be read: Is a directory"),
        (["--join", "parts", "-o", __file__], f"{__file__} is no folder"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_in_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpu_wheels.sh: argument ") and line.endswith(sentence)


def test_an_output_that_cannot_be_made_is_refused_in_one_line(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--join", str(parts), "-o", "/proc/foo"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu_wheels.sh: /proc/foo: No such file or directory\n"


def test_ctrl_c_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "fetch_wheels", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "ended by SIGINT\n"
