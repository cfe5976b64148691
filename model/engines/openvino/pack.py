"""`python -m model.engines.openvino.pack` makes the graphs of every packaged model anew, in float32 and in int8.

Run it after a change of the weights, of the code that makes graphs, of the photographs for int8, or of OpenVINO's or
NNCF's version: a test fails until then. It needs NNCF, and a CPU with VNNI: the int8 graphs are measured.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from model.checkpoints.locate import PACKAGED, locate
from model.engines.child import convert_in_child
from model.engines.cpu import cpu_name
from model.engines.job import ConversionJob, ModelSpec
from model.engines.openvino.calibration import PACKAGED_PHOTOGRAPHS, choose_photographs
from model.engines.openvino.packaged import (
    DESCRIPTION,
    FLOAT32,
    INT8,
    Description,
    describe_origin,
    read_tensors,
    remove_tensors,
)

KINDS = (FLOAT32, INT8)
"""The kinds of entries that are packaged, in this order: int8 graphs share files with the float32 graphs."""
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
    job, origin = ConversionJob(model, "openvino"), describe_origin(kind, model, source.digest)
    beside = None
    if kind == INT8:
        job = replace(job, precision="int8", photographs=choose_photographs(PACKAGED_PHOTOGRAPHS))
        origin |= {"nncf": version("nncf"), "cpu": describe_cpu()}
        beside = packaged / weights.stem / FLOAT32
    with tempfile.TemporaryDirectory() as scratch:
        entry = Path(scratch)
        convert_in_child(job, entry, print)
        return pack(entry, weights, packaged / weights.stem / kind, origin, beside)


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name and its instructions for vectors: on another CPU the calibration's last bits may differ."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return " ".join([cpu_name(cpuinfo), *sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma")))])


def pack(entry: Path, weights: Path, folder: Path, origin: dict[str, object], beside: Path | None = None) -> Path:
    """Packs the files in `entry` into `folder`, which is made anew, and returns it.

    Args:
        entry: the files of an entry of the engine cache.
        weights: the safetensors file that they were made from.
        folder: takes the packaged files.
        origin: see `describe_origin`.
        beside: the folder of the packaged float32 graphs; files that it has too are left out.
    """
    tensors = read_tensors(weights)
    names = {content: name for name, content in tensors.items() if len(content) >= MIN_TENSOR_BYTES}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digests, left_out, shared = {}, {}, []
    for path in sorted(entry.iterdir()):
        content = path.read_bytes()
        digests[path.name] = hashlib.sha256(content).hexdigest()
        if path.suffix == ".bin":
            places = _places(path.with_suffix(".xml"), content, names)
            left_out[path.name] = places
            content = remove_tensors(content, places, tensors)
        elif beside is not None and (beside / path.name).is_file() and (beside / path.name).read_bytes() == content:
            shared.append(path.name)
            continue
        (folder / path.name).write_bytes(content)
    description = Description(made_from=origin, files=digests, tensors=left_out, shared=tuple(shared))
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
