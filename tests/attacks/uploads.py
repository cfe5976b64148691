"""Clients that hold memory: bodies that stop or trickle, and answers that nobody reads.

.venv/bin/python -m tests.attacks.uploads    # 5 minutes

While they hold it, others send small requests. Each must be answered 200, but for a moment in which the memory is full
of bodies that have arrived within the last seconds (429 with Retry-After).
"""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx
from PIL import Image

from tests.attacks.server import AttackedServer, report, serve, status
from tests.attacks.time_limit import end_after
from tests.support.clients import grey
from tests.support.images import encoded

IMAGE = grey(5) + bytes(100_000)
"""What is behind the end of a PNG is ignored."""
LENGTH = 32_000_000
SENT = LENGTH - 1000
ASK_S = 0.1
LOCKED_OUT_S = 2.5
"""The longest time in a row in which small requests may be refused."""
HELD_S = 6.0
"""How long the memory is attacked."""
LEFT_S = 15.0
"""How long it may then take until no bytes are held any more."""
UNREAD_IMAGES = 50
"""Their tokens are more bytes than the kernel keeps for a client that does not read."""
UNREAD_S = 12.0
"""Longer than BODY_STALL_S."""
HEAD = "POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n"


class Holder:
    """Connections that hold memory."""

    def __init__(self, server: AttackedServer, count: int, headers: str = "", path: str = "/embed") -> None:
        """Opens the connections and sends the headers of a request on each."""
        self.sockets: list[socket.socket] = []
        self._head = HEAD.format(path=path, headers=headers, length=LENGTH).encode()
        for _ in range(count):
            one = socket.socket()
            one.settimeout(20)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", server.port))
            one.sendall(self._head)
            self.sockets.append(one)

    def send(self, body: bytes) -> None:
        """Sends the same part of the body on each connection at the same time, as long as the server takes it."""

        def send(one: socket.socket) -> None:
            try:
                one.sendall(body)
            except OSError:
                return

        threads = [threading.Thread(target=send, args=(one,)) for one in self.sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def trickle(self) -> None:
        """Sends one more byte on each connection whose server takes it now."""
        for one in self.sockets:
            one.setblocking(False)
            try:
                one.send(b"x")
            except OSError:
                continue

    def close(self) -> None:
        """Closes the connections."""
        for one in self.sockets:
            one.close()


def watch(
    what: str, server: AttackedServer, seen: Counter[str], headers: dict[str, str], between: Callable[[], None]
) -> None:
    """Sends small requests for a while, and counts how they are answered and how long they were refused."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + HELD_S
    answered = begin = time.monotonic()
    longest = slowest = 0.0
    step = begin
    while (now := time.monotonic()) < end:
        answer = httpx.post(f"{server.url}/embed", content=IMAGE, headers=headers, timeout=30)
        counts[str(answer.status_code)] += 1
        if answer.status_code == 200:
            slowest = max(slowest, time.monotonic() - now)
            answered = time.monotonic()
        elif "retry-after" not in answer.headers:
            seen[f"{what}: {answer.status_code} without Retry-After"] += 1
        longest = max(longest, time.monotonic() - answered)
        if time.monotonic() - step > 1:
            between()
            step = time.monotonic()
        time.sleep(ASK_S)
    print(
        f"{what}: {dict(counts)}, refused for {longest:.1f} s at most, slowest {slowest:.2f} s, "
        f"{server.metric('mae_inflight_bytes') / 1e6:.0f} MB held at the end",
        file=sys.stderr,
    )
    seen["small requests answered"] += counts["200"]
    seen["small requests refused"] += counts["429"]
    for answer_status in counts.keys() - {"200", "429"}:
        seen[f"{what}: {answer_status}"] += counts[answer_status]
    seen[f"{what}: locked out for seconds"] += round(longest) if longest > LOCKED_OUT_S else 0


def attack(
    what: str,
    server: AttackedServer,
    seen: Counter[str],
    count: int,
    body: bytes = b"",
    trickles: bool = False,
    own: str = "",
    others: dict[str, str] | None = None,
) -> None:
    """Bodies that are declared, sent in part, and then stop or trickle."""
    holder = Holder(server, count, own)
    holder.send(body)
    watch(what, server, seen, others or {}, holder.trickle if trickles else lambda: None)
    holder.close()
    wait_until_free(what, server, seen)


def attack_unread(server: AttackedServer, seen: Counter[str]) -> None:
    """Answers of megabytes, which nobody reads."""
    what, black = "unread answers", encoded(Image.new("RGB", (16, 16)))
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = (head + black + b"\r\n") * UNREAD_IMAGES + head + black
    end = b"\r\n--b--\r\n"
    body += bytes(LENGTH - len(body) - len(end)) + end
    headers = "Content-Type: multipart/form-data; boundary=b\r\n"
    holder = Holder(server, 8, headers, "/embed?pool=tokens")
    holder.send(body)
    watch(what, server, seen, {}, lambda: None)
    wait_until_free(what, server, seen)
    time.sleep(UNREAD_S)
    seen[f"{what}: kept"] += sum(map(is_kept, holder.sockets))
    holder.close()


def is_kept(one: socket.socket) -> bool:
    """Whether the server still had the whole answer for a client that has not read it until now.

    What the kernel had taken of it arrives in any case.
    """
    one.settimeout(2)
    received = b""
    try:
        while chunk := one.recv(1 << 20):
            received += chunk
    except OSError:  # the server has given it up, or waits for the next request
        pass
    length = re.search(rb"content-length: (\d+)", received)
    is_answer = received.startswith(b"HTTP/1.1 200")
    return is_answer and length is not None and len(received) > int(length[1])


def wait_until_free(what: str, server: AttackedServer, seen: Counter[str]) -> None:
    """Counts bytes that are still held after the attack."""
    end = time.monotonic() + LEFT_S
    while (held := server.metric("mae_inflight_bytes")) and time.monotonic() < end:
        time.sleep(0.1)
    seen[f"{what}: MB held for ever"] += int(held // 1e6)


def attack_keys(workers: int, seen: Counter[str]) -> None:
    """Strangers without a key, and one whose key has limits."""
    settings = {"api_keys": "one,two", "key_max_requests": 4}
    with serve(http_workers=workers, **settings) as server:
        other = {"x-api-key": "two"}
        attack("no key", server, seen, 8, bytes(SENT), others=other)
        attack("one key", server, seen, 8, bytes(SENT), trickles=True, own="X-API-Key: one\r\n", others=other)
        answer = server.exchange(HEAD.format(path="/embed", headers="", length=LENGTH).encode())
        seen[f"without a key: {status(answer)}"] += 1


EXPECTED = {"small requests answered", "small requests refused", "without a key: 401"}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=30)
    seen: Counter[str] = Counter()
    for workers in (0, 2):
        with serve(http_workers=workers) as server:
            attack("declared", server, seen, 8)
            attack("declared by many", server, seen, 100)
            attack("sent and stopped", server, seen, 8, bytes(SENT))
            attack("sent and trickling", server, seen, 9, bytes(SENT), trickles=True)
            attack("many small ones trickling", server, seen, 300, bytes(900_000), trickles=True)
            attack_unread(server, seen)
        attack_keys(workers, seen)
    return report("uploads", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
