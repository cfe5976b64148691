"""The requests on the README's first screen, sent as they are pasted: each answer has the shape that is shown."""

import json
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.live.conftest import LiveServer, Start

ROOT = Path(__file__).parents[2]
CURL = shutil.which("curl")
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")


def shown_requests() -> list[tuple[str, str]]:
    """The curl commands of the README, and what it shows under each."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "curl" in block]
    requests = []
    for paragraph in block.strip().split("\n\n"):
        command, *answer = paragraph.splitlines()
        requests.append((command, "".join(line.removeprefix("#").strip() for line in answer)))
    return requests


REQUESTS = shown_requests()


@pytest.fixture(scope="module")
def packaged(start_server: Start) -> LiveServer:
    return start_server()


def send(command: str, server: LiveServer, folder: Path) -> bytes:
    """Runs a command in the README's folder, but against `server`, and with its file in `folder`."""
    arguments = shlex.split(command.replace("localhost:8000", server.url))
    arguments = [str(folder / word) if before == "-o" else word for before, word in pairwise(["", *arguments])]
    done = subprocess.run([*arguments, "--silent", "--show-error"], cwd=ROOT, capture_output=True, check=True)
    return done.stdout


def assert_shown(shown: Any, answer: Any, path: str = "answer") -> None:
    """`answer` has all keys and values of `shown`, where "…" stands for whatever was left out."""
    if isinstance(shown, dict):
        assert list(shown) == list(answer), path
        for key in shown:
            assert_shown(shown[key], answer[key], f"{path}.{key}")
    elif isinstance(shown, list):
        shortened = shown[-1:] == ["…"]
        values = shown[:-1] if shortened else shown
        assert len(values) < len(answer) if shortened else len(values) == len(answer), path
        for index, value in enumerate(values):
            assert_shown(value, answer[index], f"{path}[{index}]")
    elif isinstance(shown, str) and shown.endswith("…"):
        assert answer.startswith(shown[:-1]), path
    elif isinstance(shown, float):
        assert answer == pytest.approx(shown, abs=1e-3), path  # as many digits as are shown
    else:
        assert answer == shown, path


def test_there_are_requests_of_every_kind() -> None:
    commands = " ".join(command for command, _ in REQUESTS)
    assert all(command.startswith("curl ") for command, _ in REQUESTS)
    assert "/embed" in commands and "/reconstruct" in commands and " -o " in commands


@pytest.mark.parametrize(("command", "shown"), REQUESTS, ids=[command for command, _ in REQUESTS])
def test_the_answer_is_the_one_that_is_shown(packaged: LiveServer, tmp_path: Path, command: str, shown: str) -> None:
    answer = send(command, packaged, tmp_path)
    if " -o " in command:
        (file,) = tmp_path.iterdir()
        assert not answer and file.name in shown
        with Image.open(file) as picture, Image.open(ROOT / "model/weights/reconstruction.png") as sheet:
            assert (picture.format, picture.width) == ("PNG", sheet.width)  # four pictures in a row
    else:
        assert_shown(json.loads(re.sub(r"([\[,])…", r'\1"…"', shown)), json.loads(answer))


def test_a_vector_has_the_length_that_is_said(packaged: LiveServer, tmp_path: Path) -> None:
    answer = json.loads(send(REQUESTS[0][0], packaged, tmp_path))
    assert [len(vector) for vector in answer["embeddings"]] == [answer["dim"]] * answer["count"]
