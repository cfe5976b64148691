"""Decodes are weighed before they begin: what they hold, what is refused, and who waits."""

import asyncio
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from model.config import PRESETS, Preprocessing
from model.images.open_image import open_image
from service.errors import TooManyPixels
from service.inference.decode_memory import DecodeMemory, MemoryShortage
from service.inference.image_decoder import ImageDecoder
from service.inference.limits import LocalBudget
from service.settings import Settings
from tests.support.image_files import chunk, jpeg_file
from tests.support.images import encoded

TINY = PRESETS["mae_tiny"]


def decoder(limit: int | None = None, **preprocessing: str) -> ImageDecoder:
    return ImageDecoder(TINY, Preprocessing(**preprocessing), 64_000_000, DecodeMemory(LocalBudget(limit)))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def flat_png(width: int, height: int, colour_type: int, depth: int, before: bytes = b"") -> bytes:
    row_bytes = -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type] // 8)
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + row_bytes)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SIZE = (3000, 2000)
RGBA = Image.new("RGBA", SIZE, (200, 0, 100, 128))
PALETTE = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256))
KINDS: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: jpeg_file(RGBA.convert("RGB")),
    "JPEG, oblong": lambda: jpeg_file(Image.new("RGB", (600, 20_000))),
    "JPEG, progressive": lambda: jpeg_file(RGBA.convert("RGB"), progressive=True, subsampling=0),
    "JPEG, progressive, inks": lambda: jpeg_file(RGBA.convert("CMYK"), progressive=True),
    "JPEG without its end": lambda: jpeg_file(Image.new("RGB", (600, 20_000)))[:-2],
    "PNG, grey of 1 bit": lambda: flat_png(*SIZE, 0, 1),
    "PNG, grey of 16 bits": lambda: flat_png(*SIZE, 0, 16),
    "PNG, transparent grey": lambda: flat_png(*SIZE, 0, 16, chunk(b"tRNS", b"\0\1")),
    "PNG, transparent colour": lambda: flat_png(*SIZE, 2, 16, chunk(b"tRNS", b"\0\1" * 3)),
    "PNG, palette": lambda: flat_png(*SIZE, 3, 8, PALETTE),
    "PNG, a column": lambda: flat_png(1, 1_000_000, 0, 1),
    "TIFF, a column": lambda: encoded(Image.new("L", (1, 1_000_000)), "TIFF", compression="tiff_adobe_deflate"),
    "PNG, alpha of 16 bits": lambda: flat_png(*SIZE, 6, 16),
    "PNG, turned": lambda: encoded(RGBA, exif=turned()),
    "WebP": lambda: encoded(RGBA, "WEBP", lossless=True, method=0),
    "WebP, turned": lambda: encoded(RGBA, "WEBP", method=0, exif=turned()),
    "BMP": lambda: encoded(RGBA, "BMP"),
    "GIF": lambda: encoded(Image.new("P", SIZE, 3), "GIF", transparency=3),
    "TIFF": lambda: encoded(RGBA, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, inks": lambda: encoded(RGBA.convert("CMYK"), "TIFF", compression="tiff_lzw"),
    "AVIF": lambda: encoded(RGBA, "AVIF", speed=10, subsampling="4:4:4"),
}
MEASURE = """
    import io, re, sys
    from PIL import Image
    from tests.service.inference.test_decode_memory import TINY, decoder
    from pathlib import Path

    def measure(name):
        return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

    small = io.BytesIO()
    Image.new("RGBA", (300, 300)).save(small, "PNG")
    for path in sys.argv[1:]:
        d = decoder()
        d.decode(small.getvalue(), 0)
        data = Path(path).read_bytes()
        Path("/proc/self/clear_refs").write_text("5")
        before = measure("VmRSS")
        d.decode(data, 0)
        print(measure("VmHWM") - before)
"""


@pytest.mark.live
@pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc")
def test_no_decode_holds_more_than_it_is_weighed(tmp_path: Path) -> None:
    """In a process of its own, whose peak is set back before each decode."""
    paths = []
    for number, make in enumerate(KINDS.values()):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(make())
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    for name, path, measured in zip(KINDS, paths, child.stdout.split(), strict=True):
        weight = open_image(path.read_bytes()).decode_bytes(224)
        assert int(measured) <= weight + 3_000_000, f"{name}: {measured} bytes, weighed as {weight}"


def test_coefficients_of_a_progressive_jpeg_are_weighed_at_its_whole_size() -> None:
    """Two bytes for each sample of the three channels, one of which is whole and two are a quarter."""
    plain, progressive = (jpeg_file(Image.new("RGB", (1600, 1600)), progressive=flag) for flag in (False, True))
    more = open_image(progressive).decode_bytes(224) - open_image(plain).decode_bytes(224)
    assert more == pytest.approx(2 * 1600 * 1600 * 1.5, rel=0.01)


@pytest.mark.slow
def test_the_worst_pictures_of_every_format_fit_into_the_default() -> None:
    """So MAX_DECODE_MB refuses no picture that MAX_PIXELS allows, turned and with alpha, up to 32 MB of file."""
    limit = Settings().max_decode_bytes
    edge = int(Settings().max_pixels ** 0.5)
    webp = encoded(Image.new("RGBA", (edge, edge), (1, 2, 3, 4)), "WEBP", lossless=True, method=0)
    for data in (webp, flat_png(edge, edge, 6, 16), flat_png(edge, edge, 2, 16, chunk(b"tRNS", bytes(6)))):
        assert open_image(data).decode_bytes(224) + 32_000_000 < limit


def test_an_image_that_would_never_fit_is_refused() -> None:
    data = flat_png(2000, 2000, 6, 8)
    needed = open_image(data).decode_bytes(224)
    with pytest.raises(TooManyPixels, match=r"image 3 would take \d+ MB of memory to decode; MAX_DECODE_MB allows 20"):
        decoder(20_000_000).decode(data, 3)
    assert decoder(2 * needed).decode(data, 3).size == (2000, 2000)


@pytest.mark.slow
def test_a_line_of_pixels_that_would_be_squashed_is_weighed_by_its_resize() -> None:
    """Between its two passes a resize holds the square's width for every row."""
    data = flat_png(1, 5_000_000, 0, 1)
    with pytest.raises(TooManyPixels, match="would take 45"):
        decoder(Settings().max_decode_bytes, resize="squash").decode(data, 0)
    assert decoder(Settings().max_decode_bytes).decode(data, 0).size == (1, 5_000_000)


def test_memory_is_held_while_a_decode_runs_and_no_longer() -> None:
    memory = DecodeMemory(LocalBudget(100_000_000))
    with memory.hold(60_000_000):
        assert memory.used == 60_000_000
        with pytest.raises(MemoryShortage) as shortage, memory.hold(50_000_000):
            pass
        assert shortage.value.needed == 50_000_000
        with memory.hold(50_000_000, reserved=50_000_000), memory.hold(40_000_000):
            assert memory.used == 100_000_000
    assert memory.used == 0
    with pytest.raises(ValueError, match="a decoder's"), memory.hold(60_000_000):
        raise ValueError("a decoder's")
    assert memory.used == 0


def test_those_who_wait_get_memory_in_their_order_and_light_images_pass_them() -> None:
    async def run() -> list[str]:
        memory, order = DecodeMemory(LocalBudget(100_000_000)), []

        async def take(name: str, size: int) -> None:
            reservation = await memory.reserve(size)
            order.append(name)
            await asyncio.sleep(0.05)
            reservation.release()
            reservation.release()  # does nothing

        first = await memory.reserve(80_000_000)
        heavy = [asyncio.create_task(take("90", 90_000_000)), asyncio.create_task(take("30", 30_000_000))]
        await asyncio.sleep(0)
        with memory.hold(10_000_000):
            order.append("light")
        with pytest.raises(MemoryShortage), memory.hold(20_000_000):
            pass
        first.release()
        await asyncio.gather(*heavy)
        assert memory.used == 0
        return order

    assert asyncio.run(run()) == ["light", "90", "30"]


def test_one_that_stops_waiting_leaves_the_line() -> None:
    async def run() -> None:
        memory = DecodeMemory(LocalBudget(100_000_000))
        first = await memory.reserve(80_000_000)
        gone = asyncio.create_task(memory.reserve(90_000_000))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        with memory.hold(20_000_000):
            pass
        first.release()
        assert memory.used == 0

    asyncio.run(run())


def test_a_thread_waits_for_the_memory_of_a_mask() -> None:
    memory = DecodeMemory(LocalBudget(100_000_000))
    done = threading.Event()

    def wait() -> None:
        with memory.hold_when_free(60_000_000):
            done.set()

    with memory.hold(60_000_000):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.wait(0.1)
    thread.join(5)
    assert done.is_set() and memory.used == 0
