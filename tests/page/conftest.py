"""The page in real headless Chromium, in front of real servers: `make test-page` runs these tests.

Their environment has playwright and no mae-serve; the servers run in the environment .venv.
"""

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
BIN = Path(os.environ.get("SERVER_VENV", ROOT / ".venv")) / "bin"
MAE_SERVE = (BIN / "mae", "serve")
FAKE_SERVER = (BIN / "python", "-m", "tests.support.fake_server")
CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "chromium")
SECONDS = 60

expect.set_options(timeout=15_000)


class Server:
    """A server process on a port that stays the same when it is started again."""

    def __init__(self, command: tuple[str | Path, ...], environment: dict[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = command
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
        self._environment = {**clean, "MAE_HOST": "127.0.0.1", "MAE_PORT": str(self.port), **environment}
        self._log = log
        self.start()

    def start(self) -> None:
        """Starts the process and waits until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)
        end = time.monotonic() + SECONDS
        while not self._answers("/livez"):
            assert self.process.poll() is None and time.monotonic() < end, self._log.read_text()
            time.sleep(0.05)

    def wait_until_ready(self) -> None:
        """Waits until requests are accepted."""
        end = time.monotonic() + SECONDS
        while not self._answers("/readyz"):
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts the packaged model, or with `fake` an engine of tests/support/fake_server.py; settings are keywords."""
    servers: list[Server] = []

    def start(fake: dict[str, str] | None = None, ready: bool = True, **settings: object) -> Server:
        environment = {f"MAE_{name.upper()}": str(value) for name, value in settings.items()}
        command = MAE_SERVE if fake is None else FAKE_SERVER
        server = Server(command, environment | (fake or {}), tmp_path_factory.mktemp("server") / "log")
        servers.append(server)
        if ready:
            server.wait_until_ready()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Server:
    """The packaged model."""
    return start_server()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page of a context of its own, and what went wrong on it."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.errors: list[str] = []
        """Errors on the console, and exceptions that nobody caught."""
        self.foreign: list[str] = []
        """Requests that left the origin."""
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url))

    def _check(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(url)

    def expect_errors(self, *patterns: str) -> None:
        """Forgets errors that a test provoked."""
        self.errors = [error for error in self.errors if not any(re.search(pattern, error) for pattern in patterns)]

    def open(self, fragment: str = "") -> Page:
        """Opens the page; with a fragment it starts there."""
        self.page.goto(f"{self.url}/{fragment}")
        return self.page

    def open_reconstruct(self, parameters: str = "image=chelsea") -> Page:
        """Opens the tab Reconstruct and waits for its first picture."""
        page = self.open(f"#reconstruct?{parameters}")
        expect(page.locator("#loss")).to_have_text(re.compile(r"\d"))
        return page


OpenVisit = Callable[..., Visit]


@pytest.fixture
def visit_server(browser: Browser) -> Iterator[OpenVisit]:
    """Makes visits of a server, with options of playwright's `new_context`; none may end with an unexpected error."""
    visits: list[tuple[BrowserContext, Visit]] = []

    def visit(server: Server, **options: object) -> Visit:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        made = Visit(context, server.url)
        visits.append((context, made))
        return made

    yield visit
    for context, made in visits:
        assert made.errors == []
        assert made.foreign == []
        context.close()


@pytest.fixture
def visit(visit_server: OpenVisit, server: Server) -> Visit:
    """A visit of the packaged model."""
    return visit_server(server)
