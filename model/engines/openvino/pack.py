"""`python -m model.engines.openvino.pack` makes the packaged graphs anew, for every packaged model.

Run it after a change of the weights, of the code that makes graphs, or of OpenVINO's version: a test fails until then.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from model.checkpoints.locate import PACKAGED, locate
from model.engines.child import convert_in_child
from model.engines.job import ConversionJob, ModelSpec
from model.engines.openvino.packaged import (
    DESCRIPTION,
    Description,
    describe_origin,
    read_tensors,
    remove_tensors,
)

KINDS = ("openvino",)
"""The kinds of entries that are packaged."""
MIN_TENSOR_BYTES = 256
"""Smaller constants stay in the file: another tensor may have the same few bytes by chance."""


def main() -> None:
    """Packs the graphs of all packaged weights."""
    for weights in sorted(PACKAGED.glob("*.safetensors")):
        for kind in KINDS:
            folder = make_packaged(weights, kind)
            size = sum(path.stat().st_size for path in folder.iterdir())
            print(f"{folder}: {size / 1e6:.2f} MB")


def make_packaged(weights: Path, kind: str, packaged: Path = PACKAGED) -> Path:
    """Converts a packaged model, and returns the folder in which its graphs then lie.

    Args:
        weights: a safetensors file in the project's own format.
        kind: one of `KINDS`.
        packaged: the folder with the packaged weights.
    """
    source, model = locate(str(weights), None), ModelSpec(str(weights))
    with tempfile.TemporaryDirectory() as scratch:
        entry = Path(scratch)
        convert_in_child(ConversionJob(model, "openvino"), entry, print)
        return pack(entry, weights, packaged / weights.stem / kind, describe_origin(kind, model, source.digest))


def pack(entry: Path, weights: Path, folder: Path, origin: dict[str, object]) -> Path:
    """Packs the files in `entry` into `folder`, which is made anew, and returns it.

    Args:
        entry: the files of an entry of the engine cache.
        weights: the safetensors file that they were made from.
        folder: takes the packaged files.
        origin: see `describe_origin`.
    """
    tensors = read_tensors(weights)
    names = {content: name for name, content in tensors.items() if len(content) >= MIN_TENSOR_BYTES}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digests, left_out = {}, {}
    for path in sorted(entry.iterdir()):
        content = path.read_bytes()
        digests[path.name] = hashlib.sha256(content).hexdigest()
        if path.suffix == ".bin":
            places = _places(path.with_suffix(".xml"), content, names)
            left_out[path.name] = places
            content = remove_tensors(content, places, tensors)
        (folder / path.name).write_bytes(content)
    description = Description(made_from=origin, files=digests, tensors=left_out)
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=1) + "\n")
    return folder


def _places(graph: Path, constants: bytes, names: dict[bytes, str]) -> list[tuple[int, str]]:
    """The constants of a graph that are tensors of the weights: offsets in ascending order, and names."""
    places = {}
    for layer in ElementTree.parse(graph).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            offset, size = int(data.attrib["offset"]), int(data.attrib["size"])
            name = names.get(constants[offset : offset + size])
            if name is not None:
                places[offset] = name
    return sorted(places.items())


if __name__ == "__main__":
    main()
