"""kill -9 of the server, its converter, its workers and its engine process, in each phase."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from model.engines.cache import MANIFEST
from tests.attacks.kills.clients import CLIENTS, CONNECTION_LOST, SHADES, Clients, ask
from tests.attacks.kills.scene import Scene, free_port, wait_until
from tests.attacks.server import MAE, PROBE

FAKE = (sys.executable, "-m", "tests.support.fake_server")
CONVERTER, WORKER = "model.engines.convert", "service.workers"
WORKERS = 2


class Victim:
    """A server, its port and its log."""

    def __init__(self, scene: Scene, command: Sequence[str], port: int | None = None, **variables: str) -> None:
        """Starts it, on a new port or that of another one."""
        self.scene = scene
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = scene.folder / f"server-{time.monotonic_ns()}.log"
        settings = {"MAE_HOST": "127.0.0.1", "MAE_PORT": str(self.port), **variables}
        self.process = scene.start(command, self._log, **settings)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> None:
        """Waits for a line of the log.

        Raises:
            RuntimeError: the server has ended.
        """
        wait_until(lambda: bool(re.search(pattern, self.log)) or self.process.poll() is not None, pattern)
        if not re.search(pattern, self.log):
            raise RuntimeError(f"the server has ended with {self.process.returncode}:\n{self.log}")

    def wait_until_ready(self) -> None:
        """Waits until /readyz answers 200."""

        def is_ready() -> bool:
            try:
                return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
            except httpx.TransportError:
                return self.process.poll() is not None

        wait_until(is_ready, "readiness")

    def kill(self, what: str) -> None:
        """Kills it, and checks what is left."""
        self.scene.kill(self.process, what)
        self.scene.check_port(what, self.port)

    def end(self, what: str) -> None:
        """Ends it by SIGTERM, and checks the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_for_exit(what, 0)

    def wait_for_exit(self, what: str, expected: int) -> None:
        """Checks the exit code and what is left."""
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.scene.seen[f"{what}: does not end"] += 1
            self.process.kill()
            code = self.process.wait()
        if code != expected:
            self.scene.seen[f"{what}: exit code {code}"] += 1
        if "Traceback" in self.log:
            self.scene.seen[f"{what}: traceback"] += 1
        self.scene.wait_for_end(what)
        self.scene.check_files(what)
        self.scene.check_port(what, self.port)


def restart(victim: Victim, command: Sequence[str], what: str, **variables: str) -> Victim:
    """Starts a server in place of a killed one, on its port, and asks it."""
    again = Victim(victim.scene, command, victim.port, **variables)
    again.wait_until_ready()
    if command is FAKE:
        answers = [ask(again.url, shade) for shade in SHADES]
    else:
        answers = [str(httpx.post(f"{again.url}/embed", content=SHADES[10], timeout=30).status_code)]
    victim.scene.seen["restarts"] += 1
    for answer in answers:
        if answer != "200":
            victim.scene.seen[f"{what}: restart answers {answer}"] += 1
    return again


def attack_conversion(scene: Scene, cache: Path, moments: int) -> None:
    """The server while it converts weights that are not packaged, and the converter alone."""
    variables = {"MAE_ENGINE_CACHE": str(cache), "MAE_PRECISION": "fp32", "MAE_WEIGHTS": str(PROBE)}
    victim = None
    for moment in range(moments):
        victim = Victim(scene, (*MAE, "serve"), victim and victim.port, **variables)
        scene.wait_for_child(CONVERTER, victim.process)
        time.sleep(scene.generator.uniform(0, 1) + 8 * moment / moments)
        victim.kill("server while it converts")
    for moment in (0.5, 4.0):
        victim = Victim(scene, (*MAE, "serve"), victim and victim.port, **variables)
        converter = scene.wait_for_child(CONVERTER, victim.process)
        time.sleep(moment)
        scene.kill_child(converter)
        victim.wait_for_exit("converter", 1)
        if "the conversion was ended by SIGKILL (out of memory?)" not in victim.log:
            scene.seen["converter: the log does not say it"] += 1
    assert victim is not None
    restart(victim, (*MAE, "serve"), "server while it converts", **variables).end("after the conversion")
    check_cache(scene, cache)


def check_cache(scene: Scene, cache: Path) -> None:
    """Counts what is neither a whole entry nor a lock nor a note."""
    for path in cache.iterdir():
        whole = (path / MANIFEST).is_file() and not path.name.startswith(".")
        if not whole and path.suffix not in (".lock", ".json"):
            scene.seen[f"cache: left {path.name}"] += 1


def attack_load(scene: Scene, cache: Path) -> None:
    """The server while it imports, fills the cache from the package, loads its engine and compares it.

    The last start fills the cache for the other attacks.
    """
    variables = {"MAE_ENGINE_CACHE": str(cache), "MAE_PRECISION": "fp32"}
    what = "server while it loads"
    victim = None
    for begin in (0.0, 0.7, 1.4, 2.1):
        victim = Victim(scene, (*MAE, "serve"), victim and victim.port, **variables)
        time.sleep(begin + scene.generator.uniform(0, 0.7))
        victim.kill(what)
    assert victim is not None
    restart(victim, (*MAE, "serve"), what, **variables).end(what)
    check_cache(scene, cache)


def attack_server(scene: Scene, workers: int) -> None:
    """The server, or the engine process before its workers, while it loads, answers and drains."""
    who = "engine process" if workers else "server"
    variables = {"MAE_HTTP_WORKERS": str(workers), "FAKE_S": "0.2"}
    victim = Victim(scene, FAKE, FAKE_LOAD_S="3", **variables)
    victim.wait_for("running on")
    if workers:
        scene.wait_for_child(WORKER, victim.process)
        time.sleep(scene.generator.uniform(0, 2))
    victim.kill(f"{who} while it loads")
    for phase in ("answers", "drains"):
        what = f"{who} while it {phase}"
        victim = restart(victim, FAKE, what, **variables)
        with Clients(victim.url) as clients:
            wait_until(lambda: clients.snapshot()["200"] > CLIENTS, "answers")
            if phase == "drains":
                victim.process.send_signal(signal.SIGTERM)
                time.sleep(scene.generator.uniform(0, 0.2))
            victim.kill(what)
        count(scene, what, clients, lost=CLIENTS, expected=("200", "refused", "503 draining"))
    restart(victim, FAKE, f"{who} while it drains", **variables).end(f"after the {who}")


def attack_workers(scene: Scene) -> None:
    """Each worker while it starts, while it answers, and while the service drains."""
    variables = {"MAE_HTTP_WORKERS": str(WORKERS), "FAKE_S": "0.05"}
    victim = Victim(scene, FAKE, **variables)
    what, killed = "worker while it starts", []
    for _ in range(2 * WORKERS):
        killed.append(scene.wait_for_child(WORKER, victim.process, killed))
        time.sleep(scene.generator.uniform(0, 0.6))
        scene.kill_child(killed[-1])
    victim.wait_until_ready()
    wait_until(lambda: len(scene.children(WORKER)) == WORKERS, "workers")
    with Clients(victim.url) as clients:
        for _ in range(3):
            answering = scene.children(WORKER)
            replaced, lost = answering[0], clients.snapshot()[CONNECTION_LOST]
            scene.kill_child(replaced)
            again = scene.wait_for_child(WORKER, victim.process, answering)
            time.sleep(0.3)
            if clients.snapshot()[CONNECTION_LOST] - lost > CLIENTS:
                scene.seen["worker while it answers: more lost than it had"] += 1
            lost = clients.snapshot()[CONNECTION_LOST]
            scene.kill_child(again)  # it starts, and has nobody's request
            newest = scene.wait_for_child(WORKER, victim.process, [*answering, again])
            time.sleep(2.5)
            if clients.snapshot()[CONNECTION_LOST] > lost:
                scene.seen[f"{what}: requests lost"] += 1
            if newest not in scene.children(WORKER):
                scene.seen[f"{what}: the next one has died"] += 1
    count(scene, "worker while it answers", clients, lost=3 * CLIENTS, expected=("200",))
    for child in scene.children(WORKER):
        scene.kill_child(child)
    wait_until(lambda: ask(victim.url, 10) == "200", "the next workers")
    victim.end("after the workers")
    attack_draining_workers(scene)


def attack_draining_workers(scene: Scene) -> None:
    """One worker, and all workers, while the service drains."""
    for number in (1, WORKERS):
        what = f"{number} of {WORKERS} workers while they drain"
        victim = Victim(scene, FAKE, MAE_HTTP_WORKERS=str(WORKERS), FAKE_S="0.5")
        victim.wait_until_ready()
        wait_until(lambda: len(scene.children(WORKER)) == WORKERS, "workers")
        with Clients(victim.url) as clients:
            wait_until(lambda: clients.snapshot()["200"] > CLIENTS, "answers")
            workers = scene.children(WORKER)
            victim.process.send_signal(signal.SIGTERM)
            time.sleep(scene.generator.uniform(0, 0.2))
            for worker in workers[:number]:
                scene.kill_child(worker)
            victim.wait_for_exit(what, 0)
        count(scene, what, clients, lost=CLIENTS, expected=("200", "refused", "503 draining"))


def count(scene: Scene, what: str, clients: Clients, lost: int, expected: Sequence[str]) -> None:
    """Counts answers: those of a killed process are lost, at most one of each client and kill."""
    for answer, times in clients.answers.items():
        if answer == CONNECTION_LOST and times <= lost:
            scene.seen["requests lost with their process"] += times
        elif answer in expected:
            scene.seen["right answers" if answer == "200" else answer] += times
        else:
            scene.seen[f"{what}: {answer}"] += times
