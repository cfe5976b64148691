"""Channels between the engine process and a worker that end within message k, for each k.

.venv/bin/python -m tests.attacks.protocol    # 2 minutes

Two HTTP workers with a fake engine, of which one loses its channel again and again (`tests.attacks.cut_channel`), under
four clients whose answers are compared. The worker must end, and another one take its place.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.attacks.server import AttackedServer, describe, report, serve
from tests.attacks.time_limit import end_after
from tests.support.clients import grey

MESSAGES, CLIENTS, LIMIT_S, SETTLE_S = 12, 4, 240, 20


def ask(server: AttackedServer, shade: int) -> str:
    """How a request for an image of one grey ends."""
    try:
        answer = httpx.post(f"{server.url}/embed", content=grey(shade), timeout=40)
    except httpx.TransportError:
        return "lost with their worker"
    if answer.status_code != 200:
        return f"answered {describe(answer)}"
    right = all(abs(number - shade) < 1 for number in answer.json()["embeddings"][0])
    return "answered 200" if right else "wrong"


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=15)
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        lives = Path(folder) / "lives"
        lives.write_text("0")
        fake = {"CUT_LIVES": str(lives), "FAKE_S": "0.02"}
        with serve(module="tests.attacks.cut_channel", fake=fake, http_workers=2) as server:
            ended, lock = threading.Event(), threading.Lock()

            def send(client: int) -> None:
                shade = client
                while not ended.is_set():
                    shade = 1 + (shade + CLIENTS) % 200
                    outcome = ask(server, shade)
                    with lock:
                        seen[outcome] += 1
                    time.sleep(0.02)

            threads = [threading.Thread(target=send, args=(client,)) for client in range(CLIENTS)]
            for thread in threads:
                thread.start()
            end = time.monotonic() + LIMIT_S
            try:
                while int(lives.read_text()) <= 2 * MESSAGES and time.monotonic() < end:
                    time.sleep(0.2)
                seen["not cut within every message"] += int(lives.read_text()) <= 2 * MESSAGES
            finally:
                ended.set()
            for thread in threads:
                thread.join()
            seen["channels cut"] = int(lives.read_text()) - 1
            end = time.monotonic() + SETTLE_S
            while server.metric("mae_admitted_images ") and time.monotonic() < end:
                time.sleep(0.2)
            seen["room that nobody holds"] += bool(server.metric("mae_admitted_images "))
            server.process.send_signal(signal.SIGTERM)
            try:
                seen[f"exit code {server.process.wait(SETTLE_S)}"] += 1
            except subprocess.TimeoutExpired:
                seen["no end"] += 1
            seen["traceback"] += "Traceback" in server.log
    expected = {"answered 200", "lost with their worker", "channels cut", "exit code 0"}
    return report("protocol", seen, expected)


if __name__ == "__main__":
    sys.exit(main())
