"""The attention kernel that is reported is the one that torch is made to take."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.config import PRESETS, Preprocessing
from model.engines.cuda.attention import attention_kernels
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER
from model.nn import build_model
from model.nn.serving import DecoderGraph, EncoderGraph, PaddedEncoderGraph
from model.nn.vit import MaskedAutoencoder
from tests.support.engines import NARROW


@pytest.mark.parametrize(("backend", "kernel"), [(SDPBackend.FLASH_ATTENTION, "flash"), (SDPBackend.MATH, "math")])
def test_the_kernel_of_each_graph(backend: SDPBackend, kernel: str) -> None:
    model = MaskedAutoencoder(NARROW).eval()
    graphs: dict[str, torch.nn.Module] = {
        ENCODER: EncoderGraph(model, Preprocessing()),
        PADDED_ENCODER: PaddedEncoderGraph(model, Preprocessing()),
        DECODER: DecoderGraph(model, Preprocessing()),
    }
    with sdpa_kernel(backend):
        assert attention_kernels(graphs, NARROW, "cpu") == dict.fromkeys(graphs, kernel)


def test_a_convolutional_model_has_no_attention() -> None:
    config = PRESETS["resnet_tiny"]
    with torch.device("meta"):
        graph = EncoderGraph(build_model(config).eval(), Preprocessing())
    assert attention_kernels({ENCODER: graph}, config, "meta") == {}
