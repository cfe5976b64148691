"""Files that `torch.save` wrote: their tensors, and what a training script kept beside them.

Only tensors and plain values are unpickled: torch's safe loader refuses every type that it does not know. Training
scripts also keep their arguments, paths and NumPy numbers, which are read as inert stand-ins.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.errors import WeightsError
from model.checkpoints.names import ENCODER_MARKS

CONTAINERS = (
    "model",  # facebookresearch/mae
    "state_dict",  # Lightning, mmpretrain, timm's train.py
    "model_state_dict",
    "model_state",
    "module",  # DeepSpeed
    "net",
    "network",
    "teacher",
    "model_ema",
    "state_dict_ema",
)
"""Names that training scripts keep a state dict under; of several, the first is taken."""
MAX_DEPTH = 4
"""State dicts that lie deeper inside containers are not looked for."""
ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")
"""Names that training scripts keep their arguments under."""
LFS_START = b"version https://git-lfs.github.com/spec/"
HOW_TO_SAVE = "torch.save({'model': model.state_dict()}, 'weights.pth')"


class TorchFile(NamedTuple):
    """The content of a file, as far as it matters to a model."""

    tensors: dict[str, Tensor]
    arguments: dict[str, Any]
    """Arguments of the training script and other plain values beside the tensors, by name."""
    container: str
    """The names that lead to the tensors, such as `state_dict`; empty if they lie at the top."""
    notes: tuple[str, ...] = ()
    """Sentences about other weights in the file."""


def read_torch_file(file: Path, path: Path) -> TorchFile:
    """Reads a file without executing anything in it.

    Args:
        file: the file.
        path: the file or its folder, which messages name.

    Raises:
        WeightsError: the file is damaged, is no torch file or a pointer of git-lfs, or holds something other than plain
            values and tensors.
    """
    with file.open("rb") as opened:
        start = opened.read(len(LFS_START))
    if start == LFS_START:
        raise WeightsError(f"{path} holds a pointer of git-lfs in place of the weights: run git lfs pull")
    # torch's zip archives, and its pickles before version 1.6
    if not start.startswith((b"PK", b"\x80\x02")) or _is_other_zip(file):
        raise WeightsError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # untrusted bytes can make an unpickler raise anything
        raise WeightsError(f"{path} is refused by PyTorch's safe loader: {_reason(str(error))}") from error
    names, state = _find_state_dict(content)
    if state is None:
        raise WeightsError(
            f"{path} holds no state dict: expected names and tensors, at the top or under one of "
            f"{', '.join(map(repr, CONTAINERS))}"
        )
    tensors = {str(name): tensor for name, tensor in state.items()}
    if not names:
        return TorchFile(tensors, {}, "")
    return TorchFile(tensors, _arguments(content), ".".join(names), _notes_on_others(file.name, content, names[0]))


def _is_other_zip(file: Path) -> bool:
    """Whether a file is a whole ZIP archive without torch's pickle, such as NumPy's npz."""
    try:
        with zipfile.ZipFile(file) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # no archive, or a damaged one
        return False


def _find_state_dict(content: Any) -> tuple[list[str], Mapping[Any, Tensor] | None]:
    """The state dict inside the content of a file, and the names that lead to it."""
    names: list[str] = []
    while isinstance(content, Mapping) and len(names) < MAX_DEPTH:  # a pickle may hold itself
        if all(isinstance(value, Tensor) for value in content.values()):
            return names, content
        inside = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)
        if inside is None:
            break
        names.append(inside)
        content = content[inside]
    return names, None


def _notes_on_others(file: str, content: Mapping[Any, Any], taken: str) -> tuple[str, ...]:
    """Tells which encoders beside the one under `taken` are left out, such as the averaged weights (EMA), and why."""
    others = [name for name, value in content.items() if name != taken and _holds_encoder(_find_state_dict(value)[1])]
    if not others:
        return ()
    change = f"c = torch.load({file!r}, weights_only=False); c[{taken!r}] = c.pop({others[0]!r})"
    return (
        f"its weights under {taken!r} were taken, and those under {' and '.join(map(repr, others))} left out; to take "
        f"those under {others[0]!r}, run where the file was made: {change}; torch.save(c, 'weights.pth')",
    )


def _holds_encoder(state: Mapping[Any, Tensor] | None) -> bool:
    return any(str(name).endswith(ENCODER_MARKS) for name in state or ())


def _arguments(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Plain values of the file, and over them the arguments of its training script, at most one level deep.

    Deeper are only the arguments of solo-learn's backbone.
    """
    found = {str(name): value for name, value in content.items() if isinstance(value, str | int | float)}
    for name in ARGUMENTS:
        values = content.get(name)
        values = vars(values) if isinstance(values, argparse.Namespace) else values
        if isinstance(values, Mapping):
            inner_values = [vars(v) if isinstance(v, argparse.Namespace) else v for v in values.values()]
            backbone = values.get("backbone")  # solo-learn keeps the arguments of its ViT here
            keywords = backbone.get("kwargs") if isinstance(backbone, Mapping) else None
            if isinstance(keywords, Mapping):
                found |= {str(key): value for key, value in keywords.items()}
            for inner in (*(value for value in inner_values if isinstance(value, Mapping)), values):
                found |= {str(key): value for key, value in inner.items()}
    return found


def _reason(message: str) -> str:
    """Why the safe loader refused a file, in our words."""
    if "TorchScript" in message:
        return f"it is a TorchScript program; save its weights instead, by {HOW_TO_SAVE}"
    kind = re.search(r"GLOBAL (\S+)|[Uu]nsupported class (\S+)", message)
    if kind is None:
        return "it is damaged"
    return (
        f"it holds a {kind[1] or kind[2]}, and to read that could run code; "
        f"where the file was made, save the weights alone: {HOW_TO_SAVE}"
    )


class _Inert:
    """Stands in for an object whose content does not matter."""

    def __init__(self, *arguments: object) -> None:
        """Forgets the arguments."""

    def __setstate__(self, state: object) -> None:
        """Forgets the state."""


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: _Dtype, data: object) -> object:
    """A NumPy number as Python's, or None if it is of no plain type."""
    code = getattr(dtype, "code", "")
    if not isinstance(data, bytes) or not re.fullmatch(r"[biuf][1248]", str(code)):
        return None
    kind = np.dtype(f"{dtype.order}{code}")
    return np.frombuffer(data, kind)[0].item() if len(data) == kind.itemsize else None


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for pure, names in (
            (PurePosixPath, ("PosixPath", "PurePosixPath")),
            (PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ),
    (_Dtype, "numpy.dtype"),
    (_Inert, "numpy.ndarray"),
    *(
        (stand_in, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")  # the former before NumPy 2
        for stand_in, name in ((_number, "scalar"), (_Inert, "_reconstruct"))
    ),
]
