"""Schemathesis sends whatever the API's description allows, and much that it does not, to every route.

Of its checks one is left out. `positive_data_acceptance` wants whatever the description allows to be answered 200, and
reports what a description cannot say:

- bodies whose bytes or texts are no image, or none at all (every route that takes images: 400);
- parameters that exclude each other, such as `patches` and `mask_ratio`, or that need another one (`/embed`,
  `/reconstruct`, `/explain`: 422);
- parameters that the served weights cannot follow, such as `dimensions` without a whitening (`/embed`: 422);
- tensors whose name, datatype and shape do not fit each other or the model (`/v2/models/{name}/infer`: 400), and names
  of models that are not served (404).
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.attacks.schema import complete_server, schemathesis_command
from tests.live.conftest import LiveServer, Start

EXAMPLES = 10
"""Requests that are drawn for each operation, beside those of each boundary and each omission."""
CONTRACT = Path(__file__).parents[1] / "data" / "public_contract.txt"
OPERATIONS = len(set(re.findall(r"^((?:GET|POST) \S+) answers ", CONTRACT.read_text(), re.MULTILINE)))
"""Of a bare server; with the routes that platforms name there are two more."""


def run(server: LiveServer, folder: Path, with_key: bool) -> str:
    """Runs schemathesis, which must find nothing; returns its report."""
    command = schemathesis_command(server.url, folder, EXAMPLES, with_key=with_key)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert "No issues found" in done.stdout and "Fuzzing" in done.stdout
    assert "Traceback" not in server.text()
    return done.stdout


@pytest.fixture
def bare(start_server: Start) -> LiveServer:
    """A fake engine without head, index and keys."""
    return start_server(fake={"FAKE_S": "0"}, max_images=500)


@pytest.fixture
def complete(start_server: Start, tmp_path: Path) -> LiveServer:
    """A fake engine with all that may be set, so that every route answers, and `ignored_auth` has keys to take away."""
    return start_server(**complete_server(tmp_path))


def test_every_answer_of_a_bare_server_is_described(bare: LiveServer, tmp_path: Path) -> None:
    assert f"Selected: {OPERATIONS}/{OPERATIONS}" in run(bare, tmp_path, with_key=False)


def test_every_answer_of_a_complete_server_is_described(complete: LiveServer, tmp_path: Path) -> None:
    assert f"Selected: {OPERATIONS + 2}/{OPERATIONS + 2}" in run(complete, tmp_path, with_key=True)
    refused = complete.metric("mae_requests_total", code="401")
    assert refused >= 20, "ignored_auth has sent no request without a key, or with a wrong one"
