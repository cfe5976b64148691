"""What each step of decoding a JPEG of 500 x 334 costs, and what other ways to decode and resize it would cost.

    .venv/bin/pip install --no-deps --target LIBRARIES cffi cykooz-resizer kornia-rs opencv-python-headless \
        pyvips pyvips-binary simplejpeg
    PYTHONPATH=LIBRARIES .venv/bin/python -m tests.benchmarks.resizing --photographs FOLDER

Times are core-ms: CPU time of the process, in turns, and the median of them. The differences are those from the
service's pixels, in levels of 255, over the generated JPEGs and over photographs that are scaled to their size. What is
not installed is left out, and named. To measure another build of Pillow, install it into LIBRARIES.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import PIL
from openvino import opset11 as ops
from PIL import Image

from model.arrays import Bytes
from model.config import PRESETS, Preprocessing
from model.images.open_image import open_image
from model.images.preprocess import DecodedPixels, load_upright, patches_of, patchify, resize_and_crop
from service.benchmark.samples import generate_sample

CONFIG, PREPROCESSING = PRESETS["mae_tiny"], Preprocessing()
SIZE = (500, 334)
SIDE = CONFIG.image_size
RESIZED = (335, 224)
"""The whole image with its short side scaled down, from which the plain transform cuts the square."""
LEFT = 56
"""The square's first column in it."""
BOX = (LEFT * SIZE[0] / RESIZED[0], 0.0, (LEFT + SIDE) * SIZE[0] / RESIZED[0], float(SIZE[1]))
"""The square in the stored image."""
BICUBIC = Image.Resampling.BICUBIC
SCALES = (8, 7, 6, 5, 4)
"""Eighths of its size at which libjpeg-turbo may decode an image."""
CALLS = 20
Resize = Callable[[Image.Image], Bytes]


def core_ms(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """CPU milliseconds of each call; the calls alternate, and each figure is the median of `turns` means."""
    means: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.process_time()  # some libraries have threads of their own
            for _ in range(CALLS):
                call()
            if turn:  # the first turn warms up
                means[name].append((time.process_time() - start) / CALLS * 1000)
    return {name: median(values) for name, values in means.items()}


def steps_in_order(files: tuple[bytes, ...], turns: int) -> dict[str, float]:
    """CPU milliseconds of each step on one file after the other, as the service takes them."""
    rows = []
    for number in range(turns * CALLS):
        clock = [time.thread_time_ns()]
        image = open_image(files[number % len(files)])
        clock.append(time.thread_time_ns())
        pixels = load_upright(image, SIDE)
        clock.append(time.thread_time_ns())
        square = resize_and_crop(pixels, CONFIG, PREPROCESSING)
        clock.append(time.thread_time_ns())
        array = np.asarray(square)
        clock.append(time.thread_time_ns())
        patchify(array, CONFIG.patch_size)
        clock.append(time.thread_time_ns())
        rows.append(np.diff(clock) / 1e6)
    names = ("read the header", "decode", "resize and crop", "copy to NumPy", "patches")
    return dict(zip(names, np.median(rows, axis=0).tolist(), strict=True))


def parts_of_steps(file: bytes) -> dict[str, Callable[[], object]]:
    """Parts of decoding and resizing."""

    def load(mode: str, size: tuple[int, int] | None = None) -> Image.Image:
        image = Image.open(io.BytesIO(file), formats=("JPEG",))
        image.draft(mode, size)  # type: ignore[arg-type]
        image.load()
        return image

    image = load("RGB")
    narrow = image.resize((SIDE, SIZE[1]), BICUBIC, BOX)
    grey = load("L")
    half = grey.resize((SIZE[0] // 2, SIZE[1] // 2))
    half_box = tuple(length / 2 for length in BOX)
    return {
        "decode L at an eighth: nearly all of it Huffman": lambda: load("L", (1, 1)),
        "decode L: and the luma's inverse transform": lambda: load("L"),
        "decode YCbCr: and the chroma": lambda: load("YCbCr"),
        "decode RGB: and the colours": lambda: load("RGB"),
        "resize": lambda: image.resize((SIDE, SIDE), BICUBIC, BOX),
        "resize, columns alone": lambda: image.resize((SIDE, SIZE[1]), BICUBIC, BOX),
        "resize, rows alone": lambda: narrow.resize((SIDE, SIDE), BICUBIC),
        "crop, then resize": lambda: image.crop((81, 0, 421, SIZE[1])).resize((SIDE, SIDE), BICUBIC),
        "resize one band": lambda: grey.resize((SIDE, SIDE), BICUBIC, BOX),
        "resize one band of half the size": lambda: half.resize((SIDE, SIDE), BICUBIC, half_box),  # type: ignore[arg-type]
        "everything, as today": lambda: patches_of(open_image(file), CONFIG, PREPROCESSING),
    }


def resize_as_today(image: Image.Image) -> Bytes:
    """The service's square, uint8 [S, S, 3]."""
    return np.asarray(resize_and_crop(DecodedPixels.whole(image), CONFIG, PREPROCESSING))


def cut_square(resized: Bytes) -> Bytes:
    """The square of a whole image that was resized to `RESIZED`."""
    return resized[:, LEFT : LEFT + SIDE]


def by_cykooz() -> Resize:
    """fast_image_resize, which reads Pillow's own memory."""
    library: Any = importlib.import_module("cykooz_resizer")
    resizer = library.Resizer()
    options = library.ResizeOptions(
        resize_alg=library.ResizeAlg.convolution(library.FilterType.catmull_rom),
        crop_box=library.CropBox(BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]),
        use_alpha=False,
    )

    def resize(image: Image.Image) -> Bytes:
        square = Image.new("RGB", (SIDE, SIDE))
        resizer.resize_pil(image, square, options)
        return np.asarray(square)

    return resize


def by_kornia() -> Resize:
    """kornia-rs, which has no box."""
    library: Any = importlib.import_module("kornia_rs").imgproc
    return lambda image: cut_square(library.resize(np.asarray(image), RESIZED[::-1], "bicubic", antialias=True))


def by_torch() -> Resize:
    """PyTorch's kernel for bytes, which has no box."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)

    def resize(image: Image.Image) -> Bytes:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(pixels, size=RESIZED[::-1], mode="bicubic", antialias=True)
        return cut_square(resized[0].permute(1, 2, 0).numpy())

    return resize


def by_opencv() -> Resize:
    """OpenCV's area filter: its bicubic one has no antialiasing."""
    library: Any = importlib.import_module("cv2")
    library.setNumThreads(1)
    first, end = round(BOX[0]), round(BOX[2])
    return lambda image: library.resize(np.asarray(image)[:, first:end], (SIDE, SIDE), interpolation=library.INTER_AREA)


def by_vips() -> Resize:
    """libvips, without its cache."""
    os.environ["VIPS_CONCURRENCY"] = "1"
    library: Any = importlib.import_module("pyvips")
    library.cache_set_max(0)

    def resize(image: Image.Image) -> Bytes:
        pixels = library.Image.new_from_memory(image.tobytes(), *SIZE, 3, "uchar")
        resized = pixels.resize(RESIZED[0] / SIZE[0], vscale=RESIZED[1] / SIZE[1], kernel="cubic")
        return np.asarray(resized.crop(LEFT, 0, SIDE, SIDE))

    return resize


def by_openvino() -> Resize:
    """OpenVINO's Interpolate-11 with Pillow's bicubic filter, one thread."""
    pixels = ops.parameter(openvino.PartialShape([1, -1, -1, 3]), openvino.Type.u8)
    resized = ops.interpolate(
        pixels,
        np.array(RESIZED[::-1], np.int32),
        "bicubic_pillow",
        "sizes",
        axes=np.array([1, 2], np.int32),
        cube_coeff=-0.5,
    )
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(openvino.Model([resized], [pixels]), "CPU", options).create_infer_request()

    def resize(image: Image.Image) -> Bytes:
        request.infer({0: np.asarray(image)[None]}, share_inputs=True)
        return cut_square(request.get_output_tensor().data[0]).copy()

    return resize


def by_products() -> Resize:
    """Both passes as float32 products by NumPy's BLAS, in blocks around the filter's bands."""
    columns, rows = _filter(BOX[0], BOX[2], SIZE[0]), _filter(BOX[1], BOX[3], SIZE[1])
    step = 14
    starts = range(0, SIDE, step)

    def block(weights: np.ndarray[Any, Any], start: int) -> tuple[int, int, np.ndarray[Any, Any]]:
        used = np.flatnonzero(weights[start : start + step].any(axis=0))
        part = weights[start : start + step, used[0] : used[-1] + 1]
        return int(used[0]), int(used[-1]) + 1, np.ascontiguousarray(part)

    passes = [[block(weights, start) for start in starts] for weights in (columns, rows)]
    results = [np.empty((SIDE, SIZE[1] * 3), np.float32), np.empty((SIDE, SIDE * 3), np.float32)]

    def resize(image: Image.Image) -> Bytes:
        pixels = np.asarray(image)[: passes[1][-1][1], : passes[0][-1][1]]
        for blocks, resized in zip(passes, results, strict=True):
            # [W, H * 3], then [H, S * 3]: the products run over the first axis
            flat = pixels.swapaxes(0, 1).astype(np.float32, order="C").reshape(pixels.shape[1], -1)
            for start, (first, end, weights) in zip(starts, blocks, strict=True):
                np.matmul(weights, flat[first:end], out=resized[start : start + step])
            np.clip(np.rint(resized, out=resized), 0, 255, out=resized)
            pixels = resized.reshape(SIDE, -1, 3)
        return pixels.astype(np.uint8)

    return resize


def _filter(start: float, end: float, length: int) -> np.ndarray[Any, Any]:
    """Keys' bicubic filter with a = -0.5, widened by the scale: float32 [S, length]."""
    scale = (end - start) / SIDE
    centres = start + (np.arange(SIDE)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres) / max(scale, 1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    result: np.ndarray[Any, Any] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


CANDIDATES: dict[str, Callable[[], Resize]] = {
    f"Pillow {PIL.__version__}, as today": lambda: resize_as_today,
    "cykooz-resizer": by_cykooz,
    "torch": by_torch,
    "OpenCV, area": by_opencv,
    "kornia-rs": by_kornia,
    "products by NumPy": by_products,
    "libvips": by_vips,
    "OpenVINO": by_openvino,
}


def decoders(file: bytes) -> dict[str, Callable[[bytes], tuple[Bytes, int]]]:
    """Functions that decode a JPEG to uint8 [h, w, 3] and the eighths of its size; empty without simplejpeg."""
    try:
        library: Any = importlib.import_module("simplejpeg")
    except ImportError:
        print("simplejpeg is not installed")
        return {}

    def decode_at(eighths: int) -> Callable[[bytes], tuple[Bytes, int]]:
        least = {"min_width": -(-SIZE[0] * eighths // 8), "min_height": -(-SIZE[1] * eighths // 8), "min_factor": 1}
        return lambda data: (library.decode_jpeg(data, "RGB", **least), eighths)

    return {f"simplejpeg at {eighths}/8": decode_at(eighths) for eighths in SCALES}


def resize_decoded(pixels: Bytes, eighths: int) -> Bytes:
    """The square of an image that was decoded at some eighths of its size."""
    exact = (0.0, 0.0, SIZE[0] * eighths / 8, SIZE[1] * eighths / 8)
    return np.asarray(resize_and_crop(DecodedPixels(Image.fromarray(pixels), exact), CONFIG, PREPROCESSING))


def describe_difference(squares: list[Bytes], expected: list[Bytes]) -> str:
    """The mean, the worst pixel, and the share of values that differ."""
    levels = np.abs(np.stack(squares).astype(np.int16) - np.stack(expected))
    return f"mean {levels.mean():.4f}  worst {levels.max():3}  differ {(levels > 0).mean():.2%}"


def encode_photographs(folder: Path, count: int) -> list[bytes]:
    """`count` of the JPEGs in `folder`, at any depth, scaled to `SIZE`."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = []
    for number in range(min(count, len(paths))):
        with Image.open(paths[number * len(paths) // count]) as image:
            image.convert("RGB").resize(SIZE, BICUBIC).save(out := io.BytesIO(), "JPEG", quality=85)
        files.append(out.getvalue())
    return files


def main() -> None:
    """Prints the steps, the candidates for the resize, and those for the decoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=40, help="photographs to compare")
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    files = generate_sample("JPEG", *SIZE, 8).files
    with ThreadPoolExecutor(1) as pool:  # as in the service, whose event loop has the main thread
        steps = pool.submit(steps_in_order, files, options.turns).result()
        print("core-ms of the steps:", *(f"{name} {value:.2f} " for name, value in steps.items()))
        for name, value in pool.submit(core_ms, parts_of_steps(files[0]), options.turns).result().items():
            print(f"  {name:50} {value:.2f}", flush=True)
    compared = [*files, *(encode_photographs(options.photographs, options.count) if options.photographs else ())]
    images = [load_upright(open_image(file), None).image for file in compared]
    expected = [resize_as_today(image) for image in images]
    for name, make in CANDIDATES.items():
        try:
            resize = make()
        except ImportError:
            print(f"{name} is not installed")
            continue
        cost = core_ms({name: lambda resize=resize: resize(images[0])}, options.turns)[name]  # type: ignore[misc]
        print(f"resize: {name:24} {cost:6.2f}  {describe_difference([*map(resize, images)], expected)}", flush=True)
    for name, decode in decoders(files[0]).items():
        decoded = decode(files[0])
        calls = {"decode": lambda decode=decode: decode(files[0]), "resize": lambda got=decoded: resize_decoded(*got)}
        cost_of = core_ms(calls, options.turns)  # type: ignore[arg-type]
        difference = describe_difference([resize_decoded(*decode(file)) for file in compared], expected)
        print(f"{name}: decode {cost_of['decode']:.2f}  resize {cost_of['resize']:.2f}  {difference}", flush=True)


if __name__ == "__main__":
    main()
