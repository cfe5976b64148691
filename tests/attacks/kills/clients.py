"""Clients that ask while processes are killed, and that know the right answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import httpx

from tests.attacks.server import describe
from tests.support.clients import grey

CLIENTS = 8
SHADES = {shade: grey(shade) for shade in range(10, 190, 9)}
CONNECTION_LOST = "connection lost"


def ask(url: str, shade: int, timeout_s: float = 30) -> str:
    """What became of one request over a connection of its own; the fake engine embeds a shade of grey as its number."""
    try:
        answer = httpx.post(f"{url}/embed", content=SHADES[shade], timeout=timeout_s)
    except httpx.ConnectError:
        return "refused"
    except httpx.TimeoutException:
        return "no answer"
    except httpx.TransportError:
        return CONNECTION_LOST
    if answer.status_code != 200:
        return describe(answer)
    values = answer.json()["embeddings"][0]
    return "200" if {round(value) for value in values} == {shade} else "foreign answer"


class Clients:
    """Clients that send one request after the other, each with another image; use it as a context manager."""

    def __init__(self, url: str, count: int = CLIENTS) -> None:
        """Sends nothing yet."""
        self.answers: Counter[str] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self) -> Clients:
        """Begins to send."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends after the requests that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def snapshot(self) -> Counter[str]:
        """The answers so far."""
        with self._lock:
            return self.answers.copy()

    def _run(self, number: int) -> None:
        for shade in itertools.islice(itertools.cycle(SHADES), number, None):
            if self._stop.is_set():
                return
            answer = ask(self._url, shade)
            with self._lock:
                self.answers[answer] += 1
            if answer == "refused":
                time.sleep(0.05)
