"""The code that makes an entry of the engine cache: its digest is part of the entry's name.

The lists below name exactly the modules of `model` that the child process imports to make an entry; a test compares
them with `sys.modules` there. So an edit of any other module leaves the cache as it is, and an edit of one of these
makes new entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

COMMON = (
    "model",
    "model.arrays",
    "model.atomic_write",
    "model.checkpoints",
    "model.checkpoints.attention_heads",
    "model.checkpoints.checkpoint",
    "model.checkpoints.classifiers",
    "model.checkpoints.errors",
    "model.checkpoints.foreign",
    "model.checkpoints.heads",
    "model.checkpoints.heads_file",
    "model.checkpoints.huggingface",
    "model.checkpoints.locate",
    "model.checkpoints.memory_bank",
    "model.checkpoints.names",
    "model.checkpoints.native",
    "model.checkpoints.preprocessors",
    "model.checkpoints.tensors",
    "model.checkpoints.torch_files",
    "model.config",
    "model.engines",
    "model.engines.base",
    "model.engines.batch_seconds",
    "model.engines.convert",
    "model.engines.cpu",
    "model.engines.eager",
    "model.engines.entry",
    "model.engines.export",
    "model.engines.fixed_images",
    "model.engines.job",
    "model.engines.outputs",
    "model.engines.pixel_target",
    "model.engines.reference",
    "model.masking",
    "model.nn",
    "model.nn.base",
    "model.nn.losses",
    "model.nn.resnet",
    "model.nn.serving",
    "model.nn.vit",
)
"""Imported whatever is made."""
OPENVINO = (*COMMON, "model.engines.openvino", "model.engines.openvino.graphs", "model.engines.openvino.runtime")
SOURCES: Mapping[str, tuple[str, ...]] = {
    "openvino": OPENVINO,
    "openvino-int8": (
        *OPENVINO,
        "model.engines.openvino.arithmetic",
        "model.engines.openvino.engine",
        "model.engines.openvino.quantise",
        "model.engines.parity",
        "model.images",
        "model.images.colour",
        "model.images.errors",
        "model.images.formats",
        "model.images.formats.base",
        "model.images.formats.foreign",
        "model.images.formats.jpeg",
        "model.images.formats.jpeg_ending",
        "model.images.formats.jpeg_markers",
        "model.images.formats.plain",
        "model.images.formats.png",
        "model.images.formats.png_chunks",
        "model.images.formats.tiff",
        "model.images.formats.tiff_directory",
        "model.images.formats.webp",
        "model.images.opaque",
        "model.images.open_image",
        "model.images.orientation",
        "model.images.preprocess",
        "model.images.regular_file",
    ),
    "tensorrt": (
        *COMMON,
        "model.engines.cuda",
        "model.engines.cuda.profiles",
        "model.engines.cuda.tensorrt_build",
    ),
    "torch": (
        *COMMON,
        "model.engines.cuda",
        "model.engines.cuda.engine",
        "model.engines.cuda.profiles",
        "model.engines.cuda.torch_compile",
        "model.engines.cuda.torch_graphs",
    ),
}
"""Modules by the kind of entry that they make."""
ROOT = Path(__file__).parents[2]


def code_digest(kind: str, root: Path = ROOT) -> str:
    """SHA-256 over the names and the source of the modules that make entries of `kind`, hexadecimal.

    Args:
        kind: a key of `SOURCES`.
        root: the folder that holds the package `model`.

    Raises:
        FileNotFoundError: a module of the list does not exist.
    """
    digest = hashlib.sha256()
    for name in SOURCES[kind]:
        source = source_of(name, root).read_bytes()
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def source_of(name: str, root: Path = ROOT) -> Path:
    """The source file of a module or package."""
    path = root.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
