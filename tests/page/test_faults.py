"""What people meet when something is wrong: a server that loads, dies, is full, or wants a key."""

import re
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from playwright.sync_api import Route, expect

from .conftest import OpenVisit, Server, StartServer, Visit
from .support import drop, example, file


class PrefixProxy(BaseHTTPRequestHandler):
    """Passes requests under /tools/mae/ on to `target`, and answers 404 to all others."""

    target = ""

    def do_GET(self) -> None:
        path = self.path.removeprefix("/tools/mae/")
        if path == self.path:
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0))) if self.command == "POST" else None
        names = ("accept", "content-type", "if-none-match")
        headers = {name: self.headers[name] for name in names if name in self.headers}
        request = urllib.request.Request(f"{self.target}/{path}", body, headers, method=self.command)
        with urllib.request.urlopen(request) as response:
            content = response.read()
            self.send_response(response.status)
            for name in ("content-type", "content-security-policy", "server-timing"):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


REFUSED = r"Failed to load resource"


def test_a_server_that_loads_is_waited_for(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={"FAKE_LOAD_S": "6"}, ready=False)
    page = visit_server(server).open()
    expect(page.locator("#state-text")).to_have_text("loading")
    expect(page.locator("#hints")).to_contain_text("The server is loading: pretending to build.")
    expect(page.locator("#loss")).to_have_text(re.compile(r"\d"), timeout=30_000)
    expect(page.locator("#hints .notice")).to_have_count(0)
    expect(page.locator("#state-text")).to_have_text("ready")


def test_a_server_that_was_killed_and_is_back(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={})
    visit = visit_server(server)
    page = visit.open_reconstruct()
    server.kill()
    page.locator("#ratio").fill("33")
    expect(page.locator("#hints")).to_contain_text("cannot be reached")
    expect(page.locator("#state-text")).to_have_text("unreachable")
    server.start()
    expect(page.locator("#state-text")).to_have_text("ready", timeout=30_000)
    # The move that found no server is answered now.
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("33 % removed"))
    expect(page.locator(".notice")).to_have_count(0)
    visit.expect_errors(REFUSED)


def test_tabs_that_are_opened_while_the_server_is_gone(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={})
    visit = visit_server(server)
    page = visit.open_reconstruct()
    page.locator("#tab-status").click()
    expect(page.locator("#chart-queue .now")).to_have_text(re.compile("of 512"))
    server.kill()
    page.locator("#tab-compare").click()  # its module was not loaded before
    expect(page.locator("#hints")).to_contain_text("cannot be reached")
    page.locator("#tab-status").click()
    page.wait_for_timeout(7000)  # three readings of /metrics are due
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    server.start()
    expect(page.locator("#state-text")).to_have_text("ready", timeout=30_000)
    page.wait_for_timeout(1000)
    assert sum(url.endswith("/metrics") for url in asked) in (1, 2)
    page.locator("#tab-compare").click()
    expect(page.locator("#map button")).to_have_count(4)
    expect(page.locator(".notice")).to_have_count(0)
    visit.expect_errors(REFUSED)


def test_a_refusal_by_what_stands_before_the_server_is_not_repeated_at_once(visit: Visit) -> None:
    page = visit.open_reconstruct()
    refused: list[str] = []

    def refuse(route: Route) -> None:
        refused.append(route.request.url)
        route.fulfill(status=503, body="too many requests")

    page.route("**/reconstruct?*", refuse)
    page.locator("#ratio").fill("33")
    expect(page.locator("#hints")).to_contain_text("The server is busy. The next attempt is in 1 s.")
    page.wait_for_timeout(2000)
    assert 2 <= len(refused) <= 4
    page.unroute("**/reconstruct?*")
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("33 % removed"))
    expect(page.locator(".notice")).to_have_count(0)
    visit.expect_errors("status of 503")


def test_a_full_queue_is_waited_for(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={"FAKE_S": "1"}, queue_images=1, max_batch=1, lanes=1)
    visit = visit_server(server)
    page = visit.open_reconstruct()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                request = urllib.request.Request(
                    f"{server.url}/embed", example("rocket"), {"content-type": "image/jpeg"}
                )
                urllib.request.urlopen(request).read()
            except urllib.error.HTTPError:
                stop.wait(0.02)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for value in range(20, 80, 3):  # until one is refused
            page.locator("#ratio").fill(str(value))
            if page.locator('[data-notice="queue"]').count():
                break
            page.wait_for_timeout(400)
        expect(page.locator("#hints")).to_contain_text("The server is busy. The next attempt is in 1 s.")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    page.locator("#ratio").fill("44")
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("44 % removed"))
    expect(page.locator(".notice")).to_have_count(0)
    visit.expect_errors(r"status of 429")


def test_a_file_that_is_too_large_is_named(start_server: StartServer, visit_server: OpenVisit) -> None:
    visit = visit_server(start_server(fake={}, max_body_mb=1))
    page = visit.open_reconstruct()
    drop(page, [file("poster.jpg", example("rocket") + bytes(1_100_000))])
    expect(page.locator("#alerts")).to_contain_text("poster.jpg: the body has more than 1000000 bytes")
    visit.expect_errors("status of 413", REFUSED)


def test_behind_a_prefix(server: Server, visit_server: OpenVisit) -> None:
    """As behind a proxy that takes the prefix off: all addresses of the page are relative."""
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Proxy", (PrefixProxy,), {"target": server.url}))
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        visit = visit_server(server)
        visit.url = f"http://127.0.0.1:{proxy.server_port}/tools/mae"
        page = visit.open_reconstruct()
        expect(page.locator("#curl")).to_contain_text(f"{visit.url}/reconstruct?")
        for tab in ("compare", "status"):
            page.locator(f"#tab-{tab}").click()
        expect(page.locator("#engine-facts")).to_contain_text("mae_tiny@")
        expect(page.locator("#chart-queue .now")).to_have_text(re.compile("of 512"))
        page.close()
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def test_a_key_is_asked_for_and_kept_in_memory_alone(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={}, api_keys="open sesame")
    visit = visit_server(server)
    page = visit.open()
    dialog = page.locator("#key-dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#key-refused")).to_be_hidden()
    page.locator("#key-field").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-refused")).to_be_visible()
    page.locator("#key-field").fill("open sesame")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#loss")).to_have_text(re.compile(r"\d"))
    expect(page.locator("#curl")).to_contain_text('-H "X-API-Key: $MAE_API_KEY"')
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, document.body.innerHTML]")
    assert stored[:3] == [0, 0, ""] and "sesame" not in stored[3]
    page.reload()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#alerts")).to_contain_text("a valid key is needed")
    page.locator("#key-button").click()
    page.locator("#key-field").fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#loss")).to_have_text(re.compile(r"\d"))
    expect(page.locator(".notice")).to_have_count(0)
    visit.expect_errors(r"status of 401")
