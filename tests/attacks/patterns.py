"""Text of clients that patterns and parsers could take long for: the CPU time of the server, for 64 KiB of each.

.venv/bin/python -m tests.attacks.patterns [WORD]    # 1 minute

The server has a fake engine. Each text is sent three times at a quarter of its size and three times at its whole size,
and the least CPU time of the process counts: one that grows tenfold meanwhile is not linear. The milliseconds of each
text, and the largest of them, go to stderr.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.attacks.server import AttackedServer, post, report, serve, status
from tests.attacks.time_limit import end_after
from tests.support.clients import grey
from tests.support.image_files import chunk

HEADER, PART = 60_000, 4_000
"""Bytes of a header that fit into the limit of 64 KiB, and of a header of a form's part that fit into its own."""
PARTS = 60
LIMIT_MS, GROWTH = 100, 10
BOUNDARY = "multipart/form-data; boundary=b"
IMAGE = grey(5)
Text = Callable[[int], str]
Request = Callable[[int], bytes]

OPTIONS: Mapping[str, Text] = {
    "blanks": lambda size: "x" + " " * size + "x",
    "semicolons": lambda size: "x" + "; " * (size // 2),
    "semicolons and blanks": lambda size: "x" + (";" + " " * 50) * (size // 51),
    "open quote": lambda size: 'x; a="' + "a" * size,
    "escaped quotes": lambda size: 'x; a="' + '\\"' * (size // 2),
    "backslashes": lambda size: 'x; boundary="' + "\\" * size,
    "boundaries": lambda size: "multipart/form-data" + '; boundary="\\"' * (size // 13),
    "names without values": lambda size: "x" + "; boundary " * (size // 11),
    "equals": lambda size: "x; boundary" + "=" * size,
    "commas": lambda size: "a/b," * (size // 4),
    "weights": lambda size: "a/b;q=0.123," * (size // 12),
    "weights without end": lambda size: "a/b;q=" + "0" * size,
    "bearer": lambda size: "bearer" + " \t" * (size // 2) + "\u00e0",
    "blanks before bearer": lambda size: " \t" * (size // 2) + "bearer",
    "hexadecimal": lambda size: "00-" + "0" * size,
    "addresses": lambda size: "1.1.1.1, " * (size // 9),
    "colons": lambda size: ":" * size + "%",
    "ranges": lambda size: "bytes=" + "0-1," * (size // 4),
}
"""Texts for every header that is read."""
HEADERS = (
    "Content-Type",
    "Accept",
    "Authorization",
    "X-API-Key",
    "traceparent",
    "X-Request-Id",
    "X-Forwarded-For",
    "Origin",
    "Content-Encoding",
    "Range",
    "Cookie",
)
QUERIES: Mapping[str, Text] = {
    "parameters": lambda size: "a&" * (size // 2),
    "parameters with values": lambda size: "a=1&" * (size // 4),
    "known parameter": lambda size: "keep=1&" * (size // 7),
    "percent": lambda size: "keep=" + "%41" * (size // 3),
    "broken percent": lambda size: "keep=" + "%" * size,
    "patches": lambda size: "patches=" + "1," * (size // 2),
    "patches without comma": lambda size: "patches=" + "1" * size,
    "digits": lambda size: "seed=" + "9" * size,
    "decimals": lambda size: "keep=0." + "9" * size,
    "exponent": lambda size: "keep=1e" + "9" * size,
}
DISPOSITIONS: Mapping[str, Text] = {
    "blanks": lambda size: "x" + " " * size + "x",
    "escaped quotes": lambda size: 'x="' + '\\"' * (size // 2),
    "open quotes": lambda size: "; ".join(['a="'] * (size // 5)),
    "encoded names": lambda size: "x" + "; filename " * (size // 11),
    "blanks before names": lambda size: "x" + (";" + " " * 50) * (size // 51),
    "percent": lambda size: 'x="' + "%22" * (size // 3) + '"',
}
"""Texts behind the name of a form's part, which is an image by its type."""


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "Connection: close", "", ""]).encode("latin-1")


def form(text: Text) -> Request:
    """A form of many parts whose headers are `text`, each as long as a part's header may be."""

    def make(size: int) -> bytes:
        name = f'form-data; name="a"; {text(size * PART // HEADER)}'
        part = f"--b\r\nContent-Disposition: {name}\r\nContent-Type: image/png\r\n\r\nx\r\n"
        body = part * PARTS + "--b--\r\n"
        return post(body.encode("latin-1"), f"Content-Type: {BOUNDARY}", "Connection: close")

    return make


def near_boundaries(size: int) -> bytes:
    """A boundary of half the size, and a body of texts that begin as it does."""
    boundary = "b" * (size // 2)
    body = f"--{boundary}\r\n\r\n".encode() + (b"\r\n--" + b"b" * (size // 2 - 1) + b"c") * 30
    return post(body, f"Content-Type: multipart/form-data; boundary={boundary}", "Connection: close")


def json_images(text: Text) -> Request:
    return lambda size: post(
        ('{"images": ["' + text(size) + '"]}').encode(), "Content-Type: application/json", "Connection: close"
    )


def with_metadata(packet: Callable[[int], bytes]) -> Request:
    """A PNG with an XMP packet."""

    def make(size: int) -> bytes:
        text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet(size))
        return post(IMAGE[:33] + text + IMAGE[33:], "Connection: close")

    return make


def all_requests() -> dict[str, Request]:
    requests: dict[str, Request] = {}
    for header in HEADERS:
        for name, text in OPTIONS.items():
            requests[f"{header}: {name}"] = lambda size, header=header, text=text: post(  # type: ignore[misc]
                IMAGE, f"{header}: {text(size)}", "Connection: close"
            )
    for name, text in QUERIES.items():
        requests[f"query: {name}"] = lambda size, text=text: post(  # type: ignore[misc]
            IMAGE, "Connection: close", path=f"/embed?{text(size)}"
        )
    for name, text in DISPOSITIONS.items():
        requests[f"{PARTS} parts: {name}"] = form(text)
    requests["path: slashes"] = lambda size: get("/" * size)
    requests["path: slashes and dots"] = lambda size: get("/./.." * (size // 5))
    requests["path: model names"] = lambda size: get("/v2/models" + "/a" * (size // 2))
    requests["boundary: near"] = near_boundaries
    requests["JSON: data URIs"] = json_images(lambda size: "data:" + ";base64 " * (size // 8) + ",")
    requests["JSON: blanks in a data URI"] = json_images(lambda size: "data:;base64" + " " * size + "x,")
    requests["JSON: percent in base64"] = json_images(lambda size: "%41" * (size // 3))
    requests["JSON: lists in lists"] = lambda size: post(
        b"[" * size, "Content-Type: application/json", "Connection: close", path="/v1/embeddings"
    )
    requests["image: base64"] = lambda size: post(base64.b64encode(bytes(size)), "Connection: close")
    requests["image: blanks"] = lambda size: post(b" " * size + b"<", "Connection: close")
    requests["XMP: prefixes"] = with_metadata(lambda size: b"xmlns:" * (size // 6))
    requests["XMP: long prefixes"] = with_metadata(lambda size: (b"xmlns:" + b"a" * 64) * (size // 70))
    requests["XMP: blanks"] = with_metadata(lambda size: (b"tiff:Orientation" + b" " * 64) * (size // 80))
    return requests


def cpu_ms(server: AttackedServer) -> float:
    """The CPU time of all threads of the server, in milliseconds."""
    total = 0
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e6


def measure(server: AttackedServer, request: bytes, seen: Counter[str]) -> float:
    """The least CPU time of three tries, in milliseconds."""
    tries = []
    for _ in range(3):
        before = cpu_ms(server)
        seen[status(server.exchange(request, 30))] += 1
        tries.append(cpu_ms(server) - before)
    return min(tries)


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=10)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only texts whose names begin with it")
    word = parser.parse_args().word
    seen: Counter[str] = Counter()
    worst = 0.0, ""
    with serve(api_keys="k") as server:
        server.exchange(post(IMAGE, "X-API-Key: k", "Connection: close"))
        for name, make in all_requests().items():
            if not name.startswith(word):
                continue
            key = b"" if name.startswith(("X-API-Key", "Authorization")) else b"X-API-Key: k\r\n"
            small, large = (
                measure(server, make(size).replace(b"Host: x\r\n", b"Host: x\r\n" + key, 1), seen)
                for size in (HEADER // 4, HEADER)
            )
            worst = max(worst, (large, name))
            seen["slow"] += large > LIMIT_MS
            seen["not linear"] += large > GROWTH * small and large > 10
            print(f"{name}: {small:.1f} ms, {large:.1f} ms", file=sys.stderr)
        seen["the server ended"] += server.process.poll() is not None
        seen["traceback"] += "Traceback" in server.log
    print(f"the worst took {worst[0]:.0f} ms: {worst[1]}", file=sys.stderr)
    return report("patterns", seen, {"200", "307", "400", "401", "404", "405", "406", "413", "414", "415", "422"})


if __name__ == "__main__":
    sys.exit(main())
