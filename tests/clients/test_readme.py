"""The lines that the documentation shows for clients, run as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.live.conftest import LiveServer

ROOT = Path(__file__).parents[2]
CAT = ROOT / "tests" / "data" / "chelsea.jpg"


def shown_lines() -> dict[str, str]:
    """The Python under the headings of OpenAI's and Cohere's APIs in service/api/README.md."""
    page = (ROOT / "service" / "api" / "README.md").read_text()
    blocks = re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return {heading: lines for heading, lines in blocks if heading.endswith(" API")}


def test_every_api_has_lines() -> None:
    assert list(shown_lines()) == ["OpenAI's API", "Cohere's API"]


@pytest.mark.parametrize("heading", shown_lines())
def test_the_lines_give_the_vector(open_server: LiveServer, heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    opened: list[object] = []

    def open_and_remember(*arguments: object) -> object:
        opened.append(open(*arguments))  # type: ignore[call-overload]  # noqa: SIM115  (the lines leave it to Python)
        return opened[-1]

    names: dict[str, object] = {"open": open_and_remember}
    exec(shown_lines()[heading].replace("http://localhost:8000", open_server.url), names)
    for thing in (*opened, names.get("client")):
        if thing is not None:
            thing.close()  # type: ignore[attr-defined]
    [expected] = httpx.post(f"{open_server.url}/embed", content=CAT.read_bytes()).json()["embeddings"]
    np.testing.assert_allclose(names["vector"], expected, atol=1e-6, rtol=0)


def shown_calls() -> dict[str, str]:
    """The Python of the section in service/api/README.md, by the first module that it imports from elsewhere."""
    text = (ROOT / "service" / "api" / "README.md").read_text()
    section = re.search(r"^## Open Inference Protocol\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section
    blocks = re.findall(r"^```python\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    names = ("tritonclient", "kserve", "pytriton")
    return {next(name for name in names if name in block): block for block in blocks}


def test_the_readme_shows_every_client() -> None:
    assert list(shown_calls()) == ["tritonclient", "kserve", "pytriton"]


@pytest.mark.parametrize("name", ["tritonclient", "kserve", "pytriton"])
def test_the_lines_of_the_readme_give_the_vector(open_server: LiveServer, name: str) -> None:
    python = os.environ.get("PYTRITON_PYTHON") if name == "pytriton" else sys.executable
    if not python:
        pytest.skip("PYTRITON_PYTHON names no Python that has PyTriton")
    call = shown_calls()[name].replace("localhost:8000", open_server.url.removeprefix("http://"))
    code = f"{call}\nprint(vectors.reshape(-1).tolist())"
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = httpx.post(open_server.url + "/embed", content=CAT.read_bytes()).json()["embeddings"][0]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-6, rtol=0)
