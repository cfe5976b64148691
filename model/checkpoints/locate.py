"""Finding weights: in the package, a file, a folder, or a repository of the Hugging Face hub. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model.checkpoints.errors import WeightsError, wrap_read_errors
from model.checkpoints.native import read_metadata
from model.config import PRESETS, MAEConfig

DEFAULT_MODEL = "mae_tiny"
HUB_PREFIX = "hf:"
DESCRIBING = ("config.json", "preprocessor_config.json", "heads.safetensors")
"""Files beside the weights in a folder, which are part of the model."""
HUB_SETTINGS = ("config.json", "preprocessor_config.json", "README.md")
HUB_FILE = r"(?:[\w.-]+/)*[\w.-]+\.(?:pth|pt|bin|ckpt|tar|safetensors)"
HUB_NAME = re.compile(rf"hf:([\w.-]+/[\w.-]+)(?:/({HUB_FILE}))?(?:@(.+))?")
HUB_PAGE = re.compile(
    rf"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree|raw)/([^/?#]+)(?:/({HUB_FILE}))?)?"
)
"""The address of a repository, or of one file of it, on the hub's site."""
HUB_FORMS = "hf:ORG/NAME, or hf:ORG/NAME/FILE.pth for one file of it, with @revision after either"
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pth.tar")
"""How the names of files end that may hold weights."""
LICENSE_OF_ORIGIN = {f"facebook/vit-mae-{size}": "CC-BY-NC 4.0" for size in ("base", "large", "huge")}
"""Licences of the files that repositories were converted from, where the card names another one."""
PACKAGED = Path(__file__).parents[1] / "weights"
"""Folder of the weights that come with the package."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Weights on this machine.

    Attributes:
        path: a file or a folder.
        name: name of the model: the one in the file if there is one, ORG/NAME, or the stem of the file.
        license: licence in the file's metadata or on the model card beside it.
        config: the model's config, if the file carries it.
    """

    path: Path
    name: str
    license: str | None
    config: MAEConfig | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the file, or of a folder's weights and settings with their names; computed when needed.

        Raises:
            WeightsError: the file cannot be read any more.
        """
        with wrap_read_errors(self.path):
            return _folder_digest(self.path) if self.path.is_dir() else _file_digest(self.path)

    def is_preset(self, preset: str | None) -> bool:
        """Tells whether the file carries the very config of `preset`: to name the preset then changes nothing."""
        return preset is not None and self.config is not None and self.config == PRESETS.get(preset)


def locate(weights: str | None, model: str | None) -> Source:
    """Finds the weights, downloading them only for `hf:ORG/NAME` and `hf:ORG/NAME/FILE`.

    Args:
        weights: a path, or one of `HUB_FORMS`; None for the packaged weights of `model`.
        model: a preset's name; None for the default one.

    Raises:
        WeightsError: there are no such weights, or they cannot be read.
    """
    if weights is None:
        path = _packaged(DEFAULT_MODEL if model is None else model)
    elif weights.startswith(HUB_PREFIX):
        path = _download(weights)
    elif "://" in weights:
        page = HUB_PAGE.match(weights)
        name = f"hf:{page[1]}{f'/{page[3]}' if page[3] else ''}" if page else None
        if page and page[2] not in (None, "main"):
            name = f"{name}@{page[2]}"
        raise WeightsError(f"{weights} is an address: expected a path, or {name or HUB_FORMS}")
    else:
        path = Path(weights).expanduser().absolute()
    with wrap_read_errors(path):
        path = _enter_folder(path)
        if path.is_dir():
            weight_files(path)
        metadata = None if path.is_dir() else read_metadata(path)
        source = Source(
            path=path,
            name=metadata.config.name if metadata else readable_name(path),
            license=metadata.license if metadata else license_of(path),
            config=metadata.config if metadata else None,
        )
    if weights is not None and weights.startswith(HUB_PREFIX):
        logger.info("%s is under the licence %s", source.name, source.license or "that its model card does not name")
    return source


def locate_named(weights: str | None) -> Source:
    """Finds the weights as `locate` does, but a preset's name stands for its packaged weights."""
    return locate(None, weights) if weights in PRESETS else locate(weights, None)


def weight_files(folder: Path) -> list[Path]:
    """Files with the tensors of a Hugging Face or timm folder: safetensors, whole or in shards, or else a pickle.

    Raises:
        WeightsError: there are none, or a shard is missing.
    """
    index = folder / "model.safetensors.index.json"
    if not (folder / "model.safetensors").is_file() and index.is_file():
        names = _shards(index)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WeightsError(f"{folder} lacks {missing[0]}, which {index.name} names")
        return [folder / name for name in names]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    others = _files_of_weights(folder)
    hint = f"; name the file of weights itself, such as {others[0].name} in it" if others else ""
    raise WeightsError(f"{folder} holds no model.safetensors, {index.name} or pytorch_model.bin{hint}")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of a folder of weights.

    Raises:
        WeightsError: there is no such file, or it holds something else.
    """
    path = folder / name
    if not path.is_file():
        raise WeightsError(
            f"{folder} holds no {name}: expected a folder of Hugging Face's ViTMAE or of timm; "
            "if it holds a .pth, .pt or .ckpt file, name that file"
        )
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{folder} has a {name} that is not JSON") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"{folder} has a {name} that is not a JSON object")
    return settings


def readable_name(path: Path) -> str:
    """A name to show: ORG/NAME for a snapshot in the hub's cache, a folder's name, or the stem of a file."""
    if path.is_dir():
        repository = path.parent.parent.name
        if path.parent.name == "snapshots" and repository.startswith("models--"):
            return repository.removeprefix("models--").replace("--", "/", 1)
        return path.name
    return path.stem


def license_of(path: Path) -> str | None:
    """The licence that the model card names; of converted weights also that of the files they were converted from.

    The card is the README.md in a folder, or beside a file in the hub's cache. None if there is no such card, or it
    names no licence.
    """
    folder = path if path.is_dir() else _snapshot_of(path)
    card = None if folder is None else _card_license(folder)
    origin = LICENSE_OF_ORIGIN.get(readable_name(path))
    if origin is None:
        return card
    return f"{card or 'none named'} by its card; converted from files that facebookresearch/mae has under {origin}"


def _snapshot_of(path: Path) -> Path | None:
    """The folder of the hub's cache that holds the files of one revision, if `path` lies in one."""
    return next((folder for folder in path.parents if folder.parent.name == "snapshots"), None)


def _card_license(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    front_matter = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if front_matter is None:
        return None
    name = _card_value(front_matter[1], "license")
    # The hub's form of a licence that its list does not have.
    return (_card_value(front_matter[1], "license_name") if name == "other" else None) or name


def _card_value(front_matter: str, key: str) -> str | None:
    line = re.search(rf"^{key}:[ \t]*['\"]?([^'\"\n]+?)['\"]?[ \t]*$", front_matter, re.MULTILINE)
    return line[1] if line else None


def _enter_folder(path: Path) -> Path:
    """The file that is loaded instead of the folder around it; any other path as it is.

    It is the `model.safetensors` of a training run, or the only file of weights in a folder that has no `config.json`:
    so KServe and SageMaker put weights into a folder, whatever the file's name is.
    """
    inside = path / "model.safetensors"
    if inside.is_file() and read_metadata(inside) is not None:
        return inside
    if not path.is_dir() or (path / "config.json").exists():
        return path
    files = _files_of_weights(path)
    return files[0] if len(files) == 1 else path


def _files_of_weights(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.name.endswith(WEIGHT_ENDINGS) and path.is_file())
    return sorted(path for path in files if path.name not in DESCRIBING)


def _packaged(model: str) -> Path:
    path = PACKAGED / f"{model}.safetensors"
    if model not in PRESETS:
        raise WeightsError(f"there is no preset {model!r}: the presets are {', '.join(PRESETS)}")
    if not path.is_file():
        packaged = ", ".join(sorted(file.stem for file in PACKAGED.glob("*.safetensors")))
        raise WeightsError(f"no weights of {model} are packaged, only those of {packaged}: pass {model}'s as WEIGHTS")
    return path


def _download(weights: str) -> Path:
    match = HUB_NAME.fullmatch(weights)
    if match is None or ".." in (match[2] or "").split("/"):
        raise WeightsError(f"{weights!r} names no repository of the hub: expected {HUB_FORMS}")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise WeightsError(f"{weights} needs the hub's client: pip install huggingface_hub") from error

    repository, file, revision = match.groups()
    # The second round is for repositories from before safetensors. Pickles are large, so they come only if needed.
    for kind in (file,) if file else ("*.safetensors*", "pytorch_model.bin"):
        try:
            snapshot = snapshot_download(repository, revision=revision, allow_patterns=[*HUB_SETTINGS, kind])
        except (OSError, ValueError) as error:  # the roots of the client's errors, of the network and of bad names
            first_line = str(error).strip().partition("\n")[0]
            raise WeightsError(f"{weights} cannot be downloaded: {first_line}") from error
        if any(Path(snapshot).glob(kind)):
            return Path(snapshot, file) if file else Path(snapshot)
    if file:
        raise WeightsError(f"{weights}: the repository holds no {file}")
    raise WeightsError(
        f"{weights} holds neither safetensors nor pytorch_model.bin: if it holds another file of weights, name that "
        f"as {HUB_PREFIX}{repository}/FILE.pth"
    )


def _shards(index: Path) -> list[str]:
    try:
        names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index.parent} has a {index.name} without a weight_map: expected names and shards"
        ) from error
    if any(Path(name).name != name for name in names):
        raise WeightsError(f"{index.parent} has a {index.name} that names a shard outside the folder")
    return sorted(names)


def _folder_digest(folder: Path) -> str:
    others = [folder / name for name in DESCRIBING if (folder / name).is_file()]
    digest = hashlib.sha256()
    for path in sorted([*others, *weight_files(folder)]):
        digest.update(f"{path.name}\0{_file_digest(path)}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
