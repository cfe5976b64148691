"""Small files that take much memory or time to decode, beside ordinary photographs.

.venv/bin/python -m tests.attacks.decodes [--http-workers 0 2]    # 5 minutes

The server has a real engine and the default settings but for the time of a request. Each burst comes without HTTP
workers and with two.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from PIL import Image

from tests.attacks.processes import family_memory_mb
from tests.attacks.server import PHOTO, AttackedServer, report, serve
from tests.attacks.time_limit import end_after
from tests.support.image_files import SIGNATURE, add_scans, chunk, jpeg_file, tiff_file

TIMEOUT_S, SETTLE_S = 10, 30
LIMIT_MIB = 2048
"""What the manifest gives a container."""


def flat_png(width: int, height: int, colour_type: int, depth: int, before: bytes = b"") -> bytes:
    """A PNG of zeros."""
    row = bytes(1 + -(-width * depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour_type] // 8))
    rows = max(1, (1 << 20) // len(row))
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row * min(rows, height - top)) for top in range(0, height, rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + before + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def flat_webp() -> bytes:
    """A WebP of 34 bytes and 50 megapixels."""
    Image.new("RGB", (16383, 3051)).save(out := io.BytesIO(), "WEBP", lossless=True, method=0)
    return out.getvalue()


def tall_tiff() -> bytes:
    """One column of 50 million rows."""
    tags = [(256, 4, [1]), (257, 4, [50_000_000]), (258, 3, [8]), (259, 3, [8]), (262, 3, [1]), (278, 4, [50_000_000])]
    return tiff_file(tags, [zlib.compress(bytes(50_000_000))])


def tiff_of_strips() -> bytes:
    """A million rows, each a strip of its own."""
    tags = [(256, 4, [1]), (257, 4, [1_000_000]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1]), (278, 4, [1])]
    return tiff_file(tags, [b"\0\0"] * 1_000_000)


SMALL = jpeg_file(Image.new("RGB", (64, 64)))
PACKET = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(900_000))
FLOODS: Mapping[str, Callable[[], bytes]] = {
    "20 MB of fill bytes": lambda: SMALL[:2] + b"\xff" * 20_000_000 + SMALL[2:],
    "7 million comments": lambda: SMALL[:2] + b"\xff\xfe\0\2" * 7_000_000 + SMALL[2:],
    "7 million restart markers": lambda: SMALL[:2] + b"\xff\xd0" * 7_000_000 + SMALL[2:],
    "500,000 texts": lambda: flat_png(1, 1, 2, 8, chunk(b"tEXt", b"k\0v") * 500_000),
    "a million strips": tiff_of_strips,
    "10 MB of EXIF prefixes": lambda: flat_png(1, 1, 2, 8, chunk(b"eXIf", b"Exif\0\0" * 1_700_000)),
    "9000 compressed packets": lambda: flat_png(1, 1, 2, 8, chunk(b"iTXt", PACKET) * 9000),
    "4000 scans": lambda: add_scans(4000, (7000, 7000)),
}
"""Files whose structure is parsed, or is refused."""
HEAVY: Mapping[str, Callable[[], bytes]] = {
    "RGBA": lambda: flat_png(7000, 7000, 6, 8),
    "16 bits": lambda: flat_png(7000, 7000, 0, 16),
    "tall PNG": lambda: flat_png(1, 50_000_000, 0, 1),
    "WebP": flat_webp,
    "tall TIFF": tall_tiff,
    "scans": lambda: add_scans(200, (3000, 3000)),
}
"""Files of many pixels, or of many scans."""


def masked_form() -> dict[str, bytes]:
    """A JPEG of 49 megapixels that is decoded at an eighth of its size, and its mask, which is not."""
    return {"image": jpeg_file(Image.new("RGB", (7000, 7000))), "mask": flat_png(7000, 7000, 6, 8)}


class Bystander:
    """Sends photographs and asks whether the server lives, until the block is left; notes the peak of its memory."""

    def __init__(self, server: AttackedServer) -> None:
        self.photos: list[tuple[int, float]] = []
        self.lives: list[tuple[int, float]] = []
        self.peak_mb = 0.0
        self._server = server
        self._ended = threading.Event()

    @contextmanager
    def watch(self) -> Iterator[None]:
        threads = [threading.Thread(target=work) for work in (self._send, self._probe, self._measure_memory)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _send(self) -> None:
        while not self._ended.wait(0.2):
            self.photos.append(answer(self._server, PHOTO))

    def _probe(self) -> None:
        while not self._ended.wait(0.1):
            start = time.monotonic()
            code = httpx.get(f"{self._server.url}/livez", timeout=60).status_code
            self.lives.append((code, time.monotonic() - start))

    def _measure_memory(self) -> None:
        while not self._ended.wait(0.03):
            self.peak_mb = max(self.peak_mb, family_memory_mb(self._server.process.pid))


def answer(server: AttackedServer, *images: bytes) -> tuple[int, float]:
    """The status of a request with these images, and its seconds."""
    start = time.monotonic()
    if len(images) == 1:
        code = httpx.post(f"{server.url}/embed", content=images[0], timeout=90).status_code
    else:
        files = [("image", ("x", image)) for image in images]
        code = httpx.post(f"{server.url}/embed", files=files, timeout=90).status_code
    return code, time.monotonic() - start


def answer_masked(server: AttackedServer, form: Mapping[str, bytes]) -> tuple[int, float]:
    """The status of a reconstruction with a mask picture, and its seconds."""
    start = time.monotonic()
    code = httpx.post(f"{server.url}/reconstruct", files=form, timeout=90).status_code
    return code, time.monotonic() - start


def attack(
    server: AttackedServer, name: str, requests: Sequence[Sequence[bytes] | Mapping[str, bytes]]
) -> Counter[str]:
    """Sends all requests at once, beside a bystander; what each did is written to stderr."""

    def send(request: Sequence[bytes] | Mapping[str, bytes]) -> tuple[int, float]:
        return answer_masked(server, request) if isinstance(request, Mapping) else answer(server, *request)

    bystander = Bystander(server)
    with bystander.watch(), ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(send, requests))
    slowest = max(seconds for _, seconds in bystander.photos or [(0, 0.0)])
    live = max(seconds for _, seconds in bystander.lives or [(0, 0.0)])
    codes, photos = (Counter(code for code, _ in pairs) for pairs in (answers, bystander.photos))
    print(
        f"{name}: {dict(codes)} in {max(seconds for _, seconds in answers):.1f} s; photographs {dict(photos)}, at most"
        f" {slowest:.2f} s; /livez at most {live:.2f} s; peak {bystander.peak_mb:.0f} MB",
        file=sys.stderr,
        flush=True,
    )
    seen = Counter({f"attack: {code}": count for code, count in codes.items()})
    seen.update({f"photograph: {code}": count for code, count in photos.items()})
    seen.update(f"probe: {code}" for code, _ in bystander.lives)
    seen["peak above 2 GiB"] += bystander.peak_mb * 1e6 > LIMIT_MIB << 20
    return seen


def attack_memory(server: AttackedServer, files: Sequence[bytes]) -> Counter[str]:
    """Sends every file several times, and compares the memory afterwards with that before."""
    for _ in range(20):
        answer(server, PHOTO)
    before = family_memory_mb(server.process.pid)
    seen = attack(server, "all at once", [[data] for data in files * 4])
    end = time.monotonic() + SETTLE_S
    while (after := family_memory_mb(server.process.pid)) > 1.1 * before and time.monotonic() < end:
        time.sleep(0.5)
    print(f"memory: {before:.0f} MB before, {after:.0f} MB after", file=sys.stderr)
    seen["memory is back" if after <= 1.1 * before else "memory is not back"] += 1
    return seen


EXPECTED = {
    "photograph: 200",
    "probe: 200",
    "memory is back",
    *(f"attack: {code}" for code in (200, 400, 413, 422, 429, 504)),  # 422: a black mask removes nothing
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=30)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http-workers", type=int, nargs="+", default=(0, 2), help="numbers of HTTP workers to try")
    http_workers = parser.parse_args().http_workers
    heavy = {name: make() for name, make in HEAVY.items()}
    floods = {name: make() for name, make in FLOODS.items()}
    seen: Counter[str] = Counter()
    for workers in http_workers:
        with serve(real=True, http_workers=workers, request_timeout_s=TIMEOUT_S, precision="fp32") as server:
            for name, data in floods.items():
                seen += attack(server, name, [[data]])
            for name, data in heavy.items():
                seen += attack(server, f"4 x {name}", [[data]] * 4)
            seen += attack(server, "64 x WebP in a form", [[heavy["WebP"]] * 64])
            seen += attack(server, "8 x mask", [masked_form()] * 8)
            seen += attack(server, "16 x scans", [[heavy["scans"]]] * 16)
            seen += attack_memory(server, list(heavy.values()))
            if server.process.poll() is not None:
                seen["the server ended"] += 1
    return report("decodes", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
