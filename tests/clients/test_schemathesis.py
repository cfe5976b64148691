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

import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.conftest import LiveServer, Start

EXAMPLES = 10
"""Requests that are drawn for each route, beside those of each boundary and each omission."""


@pytest.fixture
def schemathesis() -> str:
    return str(Path(sys.executable).with_name("schemathesis"))


@pytest.fixture
def server(start_server: Start) -> LiveServer:
    """A fake engine without keys: where two headers may hold one, a wrong one beside a right one is no error."""
    return start_server(fake={"FAKE_S": "0"}, max_images=500)


def test_every_answer_is_one_that_is_described(schemathesis: str, server: LiveServer, tmp_path: Path) -> None:
    command = [schemathesis, "run", server.url + "/openapi.json"]
    command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1"]
    command += ["--warnings", "off"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert "No issues found" in done.stdout and "Fuzzing" in done.stdout
