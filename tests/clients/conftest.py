"""Real clients of other projects against real servers: one process, and two HTTP workers in front of the engine.

They need an environment of their own (`make test-clients`), and are not collected in any other.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.live.conftest import LiveServer, Start, start_server  # noqa: F401  (a fixture)
from tests.support.gate import FileGate

HTTP_WORKERS = (0, 2)
API_KEY = "a-key"
"""The key of every server here: clients insist on sending one."""

collect_ignore_glob: list[str] = []
if find_spec("openai") is None:
    collect_ignore_glob.append("test_*")


@pytest.fixture(scope="session", params=HTTP_WORKERS, ids=lambda workers: f"{workers}-workers")
def server(request: pytest.FixtureRequest, start_server: Start, probe: Path) -> LiveServer:  # noqa: F811
    """The probe model, once in one process and once with HTTP workers; all tests of the session share both."""
    return start_server(weights=probe, max_batch=4, http_workers=request.param, api_keys=API_KEY)


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> FileGate:
    """The gate in front of every fake engine here."""
    return FileGate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="session", params=HTTP_WORKERS, ids=lambda workers: f"{workers}-workers")
def poisonable(request: pytest.FixtureRequest, start_server: Start, gate: FileGate) -> LiveServer:  # noqa: F811
    """A fake engine that fails where an image has the grey POISON of tests.support.fake_server."""
    limits = {"max_images": 8, "queue_images": 8, "max_batch": 1}
    fake = {"FAKE": "raises", "FAKE_GATE": gate.file}
    return start_server(fake=fake, http_workers=request.param, api_keys=API_KEY, **limits)


@pytest.fixture(scope="session")
def open_server(start_server: Start, probe: Path) -> LiveServer:  # noqa: F811
    """A server without keys, as the documentation has it."""
    return start_server(weights=probe, max_batch=4)
