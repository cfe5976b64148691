"""Graphs that come with the package: with them, the first start of the packaged model converts nothing.

A folder `model/weights/NAME/KIND` has the files of an entry of the engine cache, as `pack` made them. Constants of the
graphs that are tensors of the weights are left out: `PackagedEntry.unpack` reads them from the weights. Files that the
float32 graphs have too are in their folder alone. The SHA-256 of every unpacked file shows that it has the bits that
the conversion gave.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from model.checkpoints.locate import PACKAGED
from model.engines.fingerprint import code_digest
from model.engines.job import ModelSpec
from model.engines.openvino.calibration import PACKAGED_PHOTOGRAPHS, choose_photographs

log = logging.getLogger(__name__)
DESCRIPTION = "packaged.json"
FLOAT32 = "openvino"
"""The kind of the float32 graphs."""
INT8 = "openvino-int8"
"""The kind of the int8 graphs."""
Tensors = Mapping[str, bytes]
"""Tensors of weights by name, each as float32 in little endian."""


class Description(BaseModel):
    """What packaged graphs were made from, and how their files are unpacked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_from: dict[str, Any]
    """See `describe_origin`."""
    files: dict[str, str]
    """SHA-256 of each unpacked file, hexadecimal."""
    tensors: dict[str, list[tuple[int, str]]]
    """By file: the offset of each constant that was left out, in ascending order, and the tensor that it is."""
    shared: tuple[str, ...] = ()
    """Files that lie in the folder of the float32 graphs."""


def describe_origin(kind: str, model: ModelSpec, weights: str) -> dict[str, Any]:
    """What graphs are made from: the weights' SHA-256 (as `path`), the options, the code, and OpenVINO's version.

    Graphs in int8 depend on the photographs that they were calibrated on as well: those of the package.

    Torch and the machine are no part of it, as they are of an entry's name in the cache: the graphs are the same on all
    machines, and every start compares the engine with the reference outputs that come with them.
    """
    origin = {**asdict(model), "path": weights, "code": code_digest(kind), "openvino": version("openvino")}
    if kind == INT8:
        origin["calibration"] = choose_photographs(PACKAGED_PHOTOGRAPHS).digest
    content: dict[str, Any] = json.loads(json.dumps(origin))  # as it is read again: tuples are lists
    return content


@dataclass(frozen=True)
class PackagedEntry:
    """A folder of packaged graphs."""

    folder: Path
    description: Description

    def unpack(self, weights: Path, folder: Path) -> bool:
        """Writes the files of the cache entry into `folder`; if one is damaged, writes nothing and returns False.

        Args:
            weights: the safetensors file that the graphs were made from.
            folder: exists, and is empty.
        """
        try:
            contents = self._contents(weights)
        except (OSError, SafetensorError, KeyError) as error:
            log.warning("the packaged graphs in %s cannot be read, and new ones are made: %s", self.folder, error)
            return False
        for name, digest in self.description.files.items():
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                log.warning(
                    "the packaged graphs in %s are damaged, and new ones are made: %s is not what was packaged",
                    self.folder,
                    name,
                )
                return False
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return True

    def _contents(self, weights: Path) -> dict[str, bytes]:
        names = {name for places in self.description.tensors.values() for _, name in places}
        tensors = read_tensors(weights, names)
        contents = {}
        for name in self.description.files:
            shared = name in self.description.shared
            kept = (self.folder.parent / FLOAT32 / name if shared else self.folder / name).read_bytes()
            contents[name] = insert_tensors(kept, self.description.tensors.get(name, []), tensors)
        return contents


def find_packaged(kind: str, model: ModelSpec, weights: str, packaged: Path = PACKAGED) -> PackagedEntry | None:
    """Finds the packaged graphs that were made from the same weights, options, code and OpenVINO; None if none were.

    If there are graphs of these weights, and only something else differs, the log names it.

    Args:
        kind: the kind of entry, a key of `fingerprint.SOURCES`.
        model: the model and the operator's options for it.
        weights: SHA-256 of the weights, hexadecimal.
        packaged: the folder with the packaged weights.
    """
    wanted = describe_origin(kind, model, weights)
    for path in sorted(packaged.glob(f"*/{kind}/{DESCRIPTION}")):
        try:
            description = Description.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("the packaged graphs in %s cannot be used, and new ones are made: %s", path.parent, error)
            continue
        found = description.made_from
        if found.get("path") != weights:
            continue
        different = [name for name in wanted if wanted[name] != found.get(name)]
        if not different:
            return PackagedEntry(path.parent, description)
        log.info(
            "the packaged graphs are not used, and new ones are made: they were made with another %s",
            ", ".join(f"{name} ({str(found.get(name))[:12]}, and here {str(wanted[name])[:12]})" for name in different),
        )
    return None


def read_tensors(weights: Path, names: set[str] | None = None) -> dict[str, bytes]:
    """Reads tensors of a safetensors file as bytes of little-endian float32, by name; all of them by default.

    Raises:
        OSError, SafetensorError: the file cannot be read, or lacks a tensor.
    """
    with safe_open(weights, framework="numpy") as file:
        chosen = file.keys() if names is None else names
        return {name: file.get_tensor(name).astype("<f4").tobytes() for name in chosen}


def insert_tensors(kept: bytes, places: list[tuple[int, str]], tensors: Tensors) -> bytes:
    """Puts tensors back at `places`: pairs of an offset in the result and a name. `kept` has all other bytes."""
    parts: list[bytes] = []
    read = end = 0
    for offset, name in places:
        parts += [kept[read : read + offset - end], tensors[name]]
        read += offset - end
        end = offset + len(tensors[name])
    return b"".join([*parts, kept[read:]])


def remove_tensors(content: bytes, places: list[tuple[int, str]], tensors: Tensors) -> bytes:
    """Leaves out the tensors at `places`: the reverse of `insert_tensors`."""
    parts: list[bytes] = []
    end = 0
    for offset, name in places:
        parts.append(content[end:offset])
        end = offset + len(tensors[name])
    return b"".join([*parts, content[end:]])
