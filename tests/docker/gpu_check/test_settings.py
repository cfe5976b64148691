"""The variables that gpu_check.sh takes: those it refuses before anything runs, and the end by a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check import __main__ as program
from gpu_check.settings import SettingError, read_settings
from gpu_check.steps import Step

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("budget", ["abc", "nan", "0", "-5", "inf"])
def test_a_budget_that_is_no_time(budget: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"BUDGET is {budget}, but"):
        read_settings({"BUDGET": budget, "OUT": str(tmp_path / "out")})
    assert not (tmp_path / "out").exists()


def test_a_backend_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="BACKEND is foo, but must be torch or tensorrt"):
        read_settings({"BACKEND": "foo", "OUT": str(tmp_path / "out")})
    assert read_settings({"BACKEND": "tensorrt", "OUT": str(tmp_path / "out")}).backend == "tensorrt"


class TestOut:
    def test_it_may_be_new_or_empty(self, tmp_path: Path) -> None:
        for _ in range(2):
            assert read_settings({"OUT": str(tmp_path / "a/b")}).out == tmp_path / "a/b"

    def test_results_of_another_run_are_not_mixed_with(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text("")
        with pytest.raises(SettingError, match="not empty"):
            read_settings({"OUT": str(tmp_path)})

    @pytest.mark.parametrize("out", [__file__, f"{__file__}/out", "/proc/foo"])
    def test_it_cannot_be_made(self, out: str) -> None:
        with pytest.raises(SettingError, match=f"OUT is {out}, which cannot be made"):
            read_settings({"OUT": out})


class TestWheels:
    def test_a_folder_that_is_named_must_hold_some(self, tmp_path: Path) -> None:
        for wheels, why in ((tmp_path, "neither parts nor wheels"), (tmp_path / "none", "no folder")):
            with pytest.raises(SettingError, match=why):
                read_settings({"WHEELS": str(wheels), "OUT": str(tmp_path / "out")})

    @pytest.mark.parametrize("name", ["gpu-wheels.tar.00", "one-1.0-py3-none-any.whl"])
    def test_parts_and_wheels_are_taken(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).touch()
        assert read_settings({"WHEELS": str(tmp_path), "OUT": str(tmp_path / "out")}).wheels == tmp_path

    def test_without_a_name_none_need_be_there(self, tmp_path: Path) -> None:
        assert read_settings({"OUT": str(tmp_path / "out")}).wheels == Path("gpu-wheels")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_told_in_the_end(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It comes before the first step, or while a step runs."""

    def no_steps_but_a_signal(*_: object) -> list[Step]:
        os.kill(os.getpid(), number)
        return []

    before = signal.getsignal(signal.SIGINT)  # ignored, where the suite runs in a shell's background
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    with monkeypatch.context() as patch:
        patch.setattr(program, "steps_of", no_steps_but_a_signal)
        assert program.main() == code
        assert capsys.readouterr().err == f"the check was ended by {number.name}\n"
    monkeypatch.setenv("OUT", str(tmp_path / "other"))
    monkeypatch.setattr(program, "run_steps", lambda *_, **__: code)
    assert program.main() == code
    told = capsys.readouterr().out
    assert f"ended by {number.name}" in told and "nothing failed" not in told
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.live
class TestShellCommand:
    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "docker/gpu_check.sh", *arguments]
        return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)

    def test_help_prints_the_head_and_runs_nothing(self) -> None:
        ended = self.run("--help", PYTHON="/nonexist")
        assert ended.returncode == 0 and not ended.stderr
        assert ended.stdout.startswith("Measures everything") and "BUDGET " in ended.stdout
        assert "set -uo" not in ended.stdout

    def test_other_arguments_are_refused(self) -> None:
        ended = self.run("--budget", PYTHON="/nonexist")
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "--budget" in ended.stderr

    def test_a_variable_is_refused_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").touch()
        ended = self.run(OUT=str(tmp_path))
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "not empty" in ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
