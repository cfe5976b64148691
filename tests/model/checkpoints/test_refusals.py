"""Files that are no masked autoencoder's: each is refused by one sentence that says what was found and expected."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from model.checkpoints import classifiers, foreign, huggingface
from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import Heads
from model.checkpoints.heads_file import read_heads
from model.checkpoints.locate import weight_files
from model.checkpoints.native import HeadConfig, Metadata, read_metadata
from model.checkpoints.preprocessors import HuggingFacePreprocessor, TimmPreprocessing
from model.config import PRESETS, MAEConfig, Preprocessing

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import ViTMAEForPreTraining

Weights = dict[str, Tensor]
Save = Callable[..., "ViTMAEForPreTraining"]


def refusal(path: Path) -> str:
    """What `load` says of the path, after the path itself."""
    with pytest.raises(WeightsError) as error:
        load(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path} ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"{path} ")


def as_torch_file(weights: Weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def as_npz(weights: Weights) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in weights.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


BYTES: dict[str, tuple[Callable[[Weights], bytes], str]] = {
    "empty": (lambda weights: b"", "is neither a safetensors file nor a PyTorch checkpoint"),
    "text": (lambda weights: b"Dear diary", "is neither a safetensors file nor a PyTorch checkpoint"),
    "a zip of nothing": (
        lambda weights: b"PK\x05\x06" + bytes(18),
        "is neither a safetensors file nor a PyTorch checkpoint",
    ),
    "npz": (as_npz, "is neither a safetensors file nor a PyTorch checkpoint"),
    "a pointer of git-lfs": (
        lambda weights: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "holds a pointer of git-lfs in place of the weights: run git lfs pull",
    ),
    "half a torch file": (lambda weights: as_torch_file(weights)[:-1000], "is refused by PyTorch's safe loader"),
    "half a safetensors": (lambda weights: to_bytes(weights)[:-1000], "is a damaged safetensors file"),
    "half of ours": (
        lambda weights: to_bytes(weights, {"mae-serve": "{}"})[:-1000],
        "is a damaged safetensors file",
    ),
    "half a header": (lambda weights: to_bytes(weights)[:100], "is a damaged safetensors file"),
}


@pytest.mark.parametrize(("content", "message"), BYTES.values(), ids=BYTES)
def test_other_and_damaged_files(
    tmp_path: Path, weights: Weights, content: Callable[[Weights], bytes], message: str
) -> None:
    (tmp_path / "file").write_bytes(content(weights))
    assert refusal(tmp_path / "file").startswith(message)


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.pth") == "does not exist: expected a file or a folder of weights"


CONTENTS: dict[str, tuple[Callable[[Weights], object], str]] = {
    "a list": (
        lambda weights: [1, 2],
        "holds no state dict: expected names and tensors, at the top or under one of 'model', 'state_dict', ",
    ),
    "numbers": (lambda weights: {"accuracy": 0.9}, "holds no state dict"),
    "nothing": (lambda weights: {"model": {}}, "holds no tensors: expected those of a masked autoencoder"),
    "a ResNet": (
        lambda weights: {"conv1.weight": torch.ones(64, 3, 7, 7), "bn1.bias": torch.ones(64)},
        "holds 2 tensors such as conv1.weight: expected those of a masked autoencoder, patch_embed.proj.weight first",
    ),
    "a classifier": (
        lambda weights: {"model": weights | {"head.weight": torch.ones(10, 192)}},
        "holds no more than head.weight: expected a linear head, head.weight and head.bias",
    ),
    "a pooling classifier": (
        lambda weights: {"model": weights | {"fc_norm.weight": torch.ones(192)}},
        "describes a model that cannot be: a norm after the pooling is for vits without a decoder",
    ),
    "a missing bias": (
        lambda weights: {name: weights[name] for name in weights if name != "blocks.1.mlp.fc2.bias"},
        "lacks blocks.1.mlp.fc2.bias, which a masked autoencoder of its size has",
    ),
    "no positions": (
        lambda weights: {name: weights[name] for name in weights if name != "pos_embed"},
        "lacks pos_embed, which every masked autoencoder has",
    ),
    "part of a decoder": (
        lambda weights: {name: weights[name] for name in weights if name != "mask_token"},
        "lacks mask_token, which a masked autoencoder of its size has",
    ),
    "unexpected tensors": (
        lambda weights: weights | {"z.a": torch.ones(1), "z.b": torch.ones(1)},
        "holds z.a and 1 more, which no masked autoencoder of its size has",
    ),
    "another shape": (
        lambda weights: weights | {"norm.bias": torch.ones(10)},
        "holds norm.bias as [10]: expected [192]",
    ),
    "grey images": (
        lambda weights: weights | {"patch_embed.proj.weight": torch.ones(192, 1, 8, 8)},
        "takes images of 1 channel: mae-serve serves models of 3 channels, RGB",
    ),
    "a flat patch embedding": (
        lambda weights: weights | {"patch_embed.proj.weight": torch.ones(192, 192)},
        "holds patch_embed.proj.weight as [192, 192]: expected 4 dimensions",
    ),
    "oblong images": (
        lambda weights: weights | {"pos_embed": torch.ones(1, 13, 192)},
        "has 13 positions: expected one for cls and those of a square of patches",
    ),
    "an unusual width": (
        lambda weights: (
            {name: tensor[..., :96] for name, tensor in weights.items()}
            | {"patch_embed.proj.weight": torch.ones(96, 3, 8, 8)}
        ),
        "does not tell the number of attention heads, and its encoder is of an unusual width, 96: say HEADS=12 ",
    ),
    "not a number": (
        lambda weights: weights | {"norm.bias": torch.full((192,), torch.nan)},
        "holds infinities or NaN in norm.bias: expected finite weights",
    ),
    "infinity": (
        lambda weights: weights | {"cls_token": torch.full((1, 1, 192), -torch.inf)},
        "holds infinities or NaN in cls_token: expected finite weights",
    ),
    "sparse weights": (
        lambda weights: weights | {"blocks.0.mlp.fc1.weight": weights["blocks.0.mlp.fc1.weight"].to_sparse()},
        "holds blocks.0.mlp.fc1.weight as a sparse tensor (torch.sparse_coo): expected dense weights",
    ),
    "weights without values": (
        lambda weights: {name: tensor.to("meta") for name, tensor in weights.items()},
        "holds cls_token without values, as a tensor of the meta device: expected weights",
    ),
    "a sparse head": (
        lambda weights: {
            "model": weights | {"head.weight": torch.ones(5, 192).to_sparse(), "head.bias": torch.ones(5)}
        },
        "holds head.weight as a sparse tensor (torch.sparse_coo): expected dense weights",
    ),
    "quantised weights": (
        lambda weights: weights | {"norm.bias": torch.ones(192, dtype=torch.int8)},
        "holds norm.bias as torch.int8: expected floating-point weights",
    ),
}


@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_other_tensors(tmp_path: Path, weights: Weights, content: Callable[[Weights], object], message: str) -> None:
    torch.save(content(weights), tmp_path / "file.pth")
    assert refusal(tmp_path / "file.pth").startswith(message)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "describes a model that cannot be: Invalid JSON"),
        ({"version": 2}, "describes a model that cannot be: version is 2 (Input should be 1)"),
        ({"num_heads": 5}, "describes a model that cannot be: config is "),
        ({"depth": 3}, "lacks blocks.2.attn.proj.bias and 11 more, which a masked autoencoder of its size has"),
    ],
)
def test_our_format_with_other_metadata(
    tmp_path: Path, config: MAEConfig, weights: Weights, metadata: str | dict[str, int], message: str
) -> None:
    if isinstance(metadata, dict):
        version = {"version": metadata.pop("version")} if "version" in metadata else {}
        metadata = json.dumps({"config": config.model_dump() | metadata, "preprocessing": {}} | version)
    save_file(weights, tmp_path / "ours", {"mae-serve": metadata})
    assert refusal(tmp_path / "ours").startswith(message)


def test_our_format_with_other_positions(tmp_path: Path, config: MAEConfig, weights: Weights) -> None:
    metadata = json.dumps({"config": config.model_dump(), "preprocessing": {}})
    save_file(weights | {"pos_embed": torch.ones(1, 17, 192)}, tmp_path / "ours", {"mae-serve": metadata})
    assert refusal(tmp_path / "ours") == "declares sine-cosine positions but holds other ones"


FOLDERS: dict[str, tuple[dict[str, str], str]] = {
    "empty": (
        {},
        "holds no config.json: expected a folder of Hugging Face's ViTMAE or of timm; if it holds a .pth, .pt or .ckpt "
        "file, name that file",
    ),
    "another model": (
        {"config.json": '{"model_type": "resnet"}'},
        "has the model_type 'resnet' in its config.json: expected vit_mae or vit, or a config of timm's",
    ),
    "no JSON": ({"config.json": "hidden_size: 3"}, "has a config.json that is not JSON"),
    "a list": ({"config.json": "[]"}, "has a config.json that is not a JSON object"),
    "no weights": (
        {"config.json": '{"model_type": "vit_mae"}'},
        "holds no model.safetensors, model.safetensors.index.json or pytorch_model.bin",
    ),
    "a file of another name": (
        {"config.json": '{"model_type": "vit_mae"}', "best.pth": "", "notes.txt": ""},
        "holds no model.safetensors, model.safetensors.index.json or pytorch_model.bin; name the file of weights "
        "itself, such as best.pth in it",
    ),
    "a missing shard": (
        {"config.json": '{"model_type": "vit_mae"}'}
        | {"model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}'},
        "lacks model-1.safetensors, which model.safetensors.index.json names",
    ),
    "a shard elsewhere": (
        {"config.json": '{"model_type": "vit_mae"}'}
        | {"model.safetensors.index.json": '{"weight_map": {"a": "../secret.safetensors"}}'},
        "has a model.safetensors.index.json that names a shard outside the folder",
    ),
    "no weight_map": (
        {"config.json": '{"model_type": "vit_mae"}', "model.safetensors.index.json": "[]"},
        "has a model.safetensors.index.json without a weight_map: expected names and shards",
    ),
}


@pytest.mark.parametrize(("files", "message"), FOLDERS.values(), ids=FOLDERS)
def test_other_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert refusal(tmp_path) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "describes a model that cannot be: hidden_act is 'relu' (Input should be 'gelu')"),
        ({"num_channels": 4}, "describes a model that cannot be: num_channels is 4 (Input should be 3)"),
        ({"image_size": [32, 64]}, "describes a model that cannot be: image_size is [32, 64] ("),
        ({"num_attention_heads": 5}, "describes a model that cannot be: "),
        ({"intermediate_size": 44}, "holds blocks.0.mlp.fc1.weight as [40, 24]: expected [44, 24]"),
        ({"decoder_num_hidden_layers": 2}, "lacks decoder_blocks.1.attn.proj.bias and 11 more"),
    ],
)
def test_a_hugging_face_config_that_does_not_fit(
    tmp_path: Path, hugging_face: Save, changes: dict[str, object], message: str
) -> None:
    hugging_face(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert refusal(tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layernorm_before", "ln1", "lacks blocks.0.norm1.bias and 5 more"),
        ("0.attention.attention.value.bias", "0.v.bias", "lacks blocks.0.attn.qkv.bias and 1 more"),
    ],
)
def test_hugging_face_names_of_no_known_generation(
    tmp_path: Path, hugging_face: Save, old: str, new: str, message: str
) -> None:
    hugging_face(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(file).items()}, file)
    assert refusal(tmp_path).startswith(message)


def test_hugging_face_names_of_two_generations_at_once(tmp_path: Path, hugging_face: Save) -> None:
    state = {name: tensor.clone() for name, tensor in hugging_face(tmp_path).state_dict().items()}
    save_file(load_file(tmp_path / "model.safetensors") | state, tmp_path / "model.safetensors")
    assert " twice, the second time as " in refusal(tmp_path)


def test_a_hugging_face_file_out_of_its_folder(tmp_path: Path, hugging_face: Save) -> None:
    hugging_face(tmp_path)
    assert refusal(tmp_path / "model.safetensors").endswith("; pass its folder, config.json included")


def test_a_sentence_names_its_path_wherever_it_is_raised(tmp_path: Path, config: MAEConfig, weights: Weights) -> None:
    """Every function that refuses weights says whose, without the help of its caller."""
    path = tmp_path / "bird"
    path.mkdir()
    doubled = {f"{prefix}decoder.decoder_norm.bias": torch.ones(1) for prefix in ("", "vit.")}
    metadata = Metadata(config=config, preprocessing=Preprocessing(), head=HeadConfig(pool="cls", classes=("a",)))
    crops = HuggingFacePreprocessor(size={"shortest_edge": 48})  # type: ignore[arg-type]
    huge = Checkpoint(config, Preprocessing(), "mae-serve", weights | {"cls_token": torch.full((1, 1, 192), 1e6)})
    refusals: list[Callable[[], object]] = [
        lambda: weight_files(path),
        lambda: foreign.infer_config(path, {}, None, "bird"),
        lambda: classifiers.to_head(path, {"head.bias": torch.ones(1)}, "cls", None),
        lambda: classifiers.pool_of(path, "map", False),
        lambda: foreign.require_agreement(path, config, PRESETS["mae_base"]),
        lambda: huggingface.to_upstream_names(path, doubled),
        lambda: crops.to_preprocessing(32, path),
        lambda: TimmPreprocessing().to_preprocessing(32, path),
        lambda: Heads.from_arrays(path, {}, metadata),
        lambda: read_metadata(tmp_path / "bird.safetensors"),
        lambda: read_heads(tmp_path / "bird.safetensors"),
        lambda: save(tmp_path / "bird.safetensors", huge, half=True),
    ]
    for refuse in refusals:
        with pytest.raises(WeightsError) as error:
            refuse()
        assert str(error.value).startswith(str(path))
