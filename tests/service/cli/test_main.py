"""The command line as a whole: help, version, options."""

import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from service.cli.examples import EXAMPLES
from service.cli.main import app
from service.settings import Settings
from tests.service.cli.conftest import Mae
from tests.support.command_line import SCRIPT, all_commands

HEAVY = ("torch", "openvino", "fastapi", "starlette", "pyarrow", "safetensors.torch", "sklearn", "scipy")


def help_of(*command: str) -> str:
    """Help as text on one line, without frames."""
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.live
def test_help_imports_nothing_heavy() -> None:
    code = f"import sys, service.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.live
def test_the_script_tells_its_version() -> None:
    assert subprocess.check_output([SCRIPT, "--version"], text=True) == f"mae-serve {version('mae-serve')}\n"


def test_every_setting_is_an_option_of_serve() -> None:
    text = help_of("serve")
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text and str(field.description) in text
    assert "auto|tensorrt|openvino|torch Engine: auto, tensorrt, openvino or torch. [default: auto]" in text
    assert "--port <int>" in text and "--max-delay-ms <float>" in text and "--engine-cache <path>" in text
    assert "--norm-pix-loss --no-norm-pix-loss <bool>" in text
    assert "[default: (" not in text


@pytest.mark.slow
def test_every_command_has_examples_that_it_takes() -> None:
    commands = all_commands()
    assert set(EXAMPLES) == set(commands)
    for name, command in commands.items():
        text, own = help_of(*name.split()), name.split()
        for example in EXAMPLES[name]:
            assert example in text.partition("Examples:")[2]
            words = shlex.split(example)
            start = words.index("mae")
            assert all("=" in variable for variable in words[:start])
            assert words[start + 1 : start + 1 + len(own)] == own
            command.make_context(
                name, words[start + 1 + len(own) :]
            )  # it parses them, and refuses what it does not know


@pytest.mark.parametrize(
    "command", ["embed", "reconstruct", "info", "evaluate", "classify", "anomaly fit", "anomaly test"]
)
def test_commands_take_the_engines_options_and_no_others(command: str) -> None:
    text = help_of(*command.split())
    assert "--weights <text>" in text and "--max-pixels <int>" in text
    assert "--port" not in text and "--queue-images" not in text and "--encoding" not in text


def test_environment_and_options_are_checked_alike(mae: Mae, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "mae: BACKEND: Input should be 'auto', 'tensorrt', 'openvino' or 'torch' (given: 'abacus')\n"
    assert mae("info", "--backend", "abacus") == (2, "", sentence)
    monkeypatch.setenv("MAE_BACKEND", "abacus")
    assert mae("info") == (2, "", sentence)


def test_preprocessing_is_json(mae: Mae) -> None:
    broken = mae("info", "--preprocess", '{"filter"')
    assert broken.code == 2 and broken.err.startswith("mae: PREPROCESS: Expecting ':' delimiter")
    assert mae("info", "--preprocess", "[1]").err.startswith("mae: PREPROCESS: Input should be a valid dictionary")


@pytest.mark.parametrize("arguments", [["embed"], ["fly"], ["embed", "a.png", "-o", "b.npz", "--wings", "2"]])
def test_a_wrong_command_ends_with_2(mae: Mae, arguments: list[str]) -> None:
    result = mae(*arguments)
    assert result.code == 2 and "Usage: mae" in result.err
