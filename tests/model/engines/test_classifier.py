"""A classifier in a foreign file, from its tensors to probabilities: by torch, and by OpenVINO without torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.engines.base import ServedModel
from model.engines.build import build
from model.engines.fixed_images import fixed_patches
from model.engines.settings import EngineSettings
from model.masking import all_indices
from model.nn.vit import MaskedAutoencoder
from tests.support.conversion import conversions_in_process
from tests.support.engines import NARROW
from tests.support.vit_formula import State, encode, layer_norm

HEADS = 4


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights as main_finetune.py of facebookresearch/mae names them, with seven classes."""
    generator = torch.Generator().manual_seed(0)
    config = NARROW.model_copy(update={"decoder_depth": 0, "final_norm": "pooled"})
    shapes = {name: tensor for name, tensor in MaskedAutoencoder(config).state_dict().items() if name != "pos_embed"}
    shapes |= {"head.weight": torch.empty(7, 32), "head.bias": torch.empty(7)}
    drawn = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in shapes.items()}
    return drawn | {"pos_embed": MaskedAutoencoder(config).state_dict()["pos_embed"]}


@pytest.fixture(scope="module")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mae_finetuned.pth"
    torch.save({"model": state, "args": {"global_pool": True}}, path)
    return path


def classify(served: ServedModel) -> np.ndarray:
    """Probabilities of the fixed images, as the service computes them."""
    head, config = served.heads.head, served.info.config
    assert head is not None and served.info.head == head.config and head.config.pool == "mean"
    patches = fixed_patches(config)
    vectors = served.engine.embed(0, patches, np.repeat(all_indices(config.num_patches)[None], len(patches), axis=0))
    return np.stack([head.probabilities(vector[None])[0] for vector in vectors[:, 1]])


def expected_of(served: ServedModel, state: State) -> np.ndarray:
    """The same by upstream's formula."""
    config, preprocessing = served.info.config, served.info.preprocessing
    squares = torch.from_numpy(fixed_patches(config)).reshape(-1, config.grid, config.grid, 8, 8, 3)
    images = squares.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 32, 32) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    tokens = encode(state, (images - mean) / std, HEADS, norm=False)
    vectors = layer_norm(state, "fc_norm", tokens[:, 1:].mean(dim=1))
    return F.linear(vectors, state["head.weight"], state["head.bias"]).softmax(dim=-1).numpy()


def settings(cache: Path, weights: Path, **more: Any) -> EngineSettings:
    return EngineSettings(
        engine_cache=cache, weights=str(weights), heads=(HEADS,), precision="fp32", lanes=1, max_batch=4, **more
    )


def test_by_torch(tmp_path: Path, weights: Path, state: State) -> None:
    served = build(settings(tmp_path, weights, backend="torch"))
    expected = expected_of(served, state)
    assert len(set(expected.argmax(axis=1))) > 1 and expected.max() < 0.99, "the images are told apart"
    np.testing.assert_allclose(classify(served), expected, atol=1e-4)
    assert served.info.head is not None and served.info.head.classes == tuple("0123456")


@pytest.mark.converts
def test_by_openvino_and_again_from_the_cache(engine_cache: Path, weights: Path, state: State) -> None:
    with conversions_in_process():
        made = build(settings(engine_cache, weights, backend="openvino"))
    again = build(settings(engine_cache, weights, backend="openvino"))
    assert made.info.entry == again.info.entry is not None
    for served in (made, again):
        np.testing.assert_allclose(classify(served), expected_of(served, state), atol=1e-4)
        assert served.info.parity is not None and served.info.parity.cosine >= 0.999999
        assert [note[:27] for note in served.info.notes] == [
            "it does not name its classe",
            "it does not tell how its im",
        ]
