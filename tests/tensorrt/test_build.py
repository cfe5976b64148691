"""The engines of every graph, really built by TensorRT, and looked at before they are serialised."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx as trt
import torch
import torch_tensorrt.dynamo.conversion._TRTInterpreter as interpreter

from model.checkpoints.checkpoint import Checkpoint, save
from model.config import PRESETS, MAEConfig, Preprocessing
from model.engines import convert, entry
from model.engines.base import TensorRTError
from model.engines.cuda import tensorrt_build
from model.engines.cuda.tensorrt import TensorRTGraphs
from model.engines.job import ConversionJob, ModelSpec
from model.engines.reference import load_model
from model.nn import build_model
from tests.support.engines import fake_info

pytestmark = pytest.mark.filterwarnings("default")  # torch-tensorrt has many of its own
MOST = 48


@dataclass
class Network:
    """What TensorRT is told to build: name -> (type, shape); layers by (kind, type of the result)."""

    inputs: dict[str, tuple[Any, tuple[int, ...]]]
    outputs: dict[str, tuple[Any, tuple[int, ...]]]
    profiles: list[dict[str, list[tuple[int, ...]]]]
    layers: Counter[tuple[Any, Any]] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def networks() -> Iterator[list[Network]]:
    """Every network, in the order of building, as it is when the builder gets it."""
    seen: list[Network] = []
    original = interpreter.TRTInterpreter._populate_trt_builder_config

    def look(self: Any, *given: Any) -> Any:
        net = self.ctx.net
        inputs = [net.get_input(index) for index in range(net.num_inputs)]
        outputs = [net.get_output(index) for index in range(net.num_outputs)]
        network = Network(
            {one.name: (one.dtype, tuple(one.shape)) for one in inputs},
            {one.name: (one.dtype, tuple(one.shape)) for one in outputs},
            [
                {one.name: [tuple(shape) for shape in profile.get_shape(one.name)] for one in inputs}
                for profile in self.optimization_profiles
            ],
        )
        for index in range(net.num_layers):
            layer = net.get_layer(index)
            network.layers[layer.type, layer.get_output(0).dtype] += 1
        seen.append(network)
        return original(self, *given)

    interpreter.TRTInterpreter._populate_trt_builder_config = look
    yield seen
    interpreter.TRTInterpreter._populate_trt_builder_config = original


def fresh(config: MAEConfig) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(config, Preprocessing(), "mae-serve", dict(build_model(config).state_dict()))


def build(config: MAEConfig, precision: Any, folder: Path, most: int = MOST) -> list[str]:
    said: list[str] = []
    tensorrt_build.build_engines(
        fresh(config), config, Preprocessing(), precision, most, folder, said.append, device="cpu"
    )
    return said


def of_kind(network: Network, kind: Any) -> dict[Any, int]:
    return {dtype: count for (layer, dtype), count in network.layers.items() if layer == kind}


def test_each_graph_is_one_engine_for_every_batch_and_every_k(
    preset: str, networks: list[Network], tmp_path: Path
) -> None:
    config = PRESETS[preset]
    n, p, d = config.num_patches, config.patch_dim, config.embed_dim
    networks.clear()
    said = build(config, "fp16", tmp_path)
    assert [line.partition(" (")[0] for line in said] == [
        f"building the TensorRT engine of {preset}'s {name}" for name in ("encoder", "decoder", "encoder_padded")
    ]
    encoder, decoder, padded = networks
    for name, parameters in (("encoder", 12 * config.depth * d**2), ("decoder", 4 * config.decoder_embed_dim**2)):
        size = (tmp_path / f"{name}.engine").stat().st_size
        assert size > 2 * parameters, "the weights are inside, in half precision"

    half, single = trt.DataType.HALF, trt.DataType.FLOAT
    assert encoder.inputs == {
        "patches": (trt.DataType.UINT8, (-1, -1, p)),
        "visible_indices": (trt.DataType.INT32, (-1, -1)),
    }
    assert encoder.outputs == {"pooled": (single, (-1, 2, d)), "latent": (single, (-1, -1, d))}
    assert decoder.inputs == {
        "latent": (single, (-1, -1, d)),
        "restore_indices": (trt.DataType.INT32, (-1, n)),
        "patches": (trt.DataType.UINT8, (-1, n, p)),
    }
    assert decoder.outputs == {"pixels": (half, (-1, n, p)), "error": (single, (-1, n))}

    quarter = n // 4
    assert encoder.profiles == [
        {"patches": [(1, 1, p), (1, n, p), (1, n, p)], "visible_indices": [(1, 1), (1, n), (1, n)]},
        {
            "patches": [(1, 1, p), (MOST, quarter, p), (MOST, quarter, p)],
            "visible_indices": [(1, 1), *[(MOST, quarter)] * 2],
        },
        {"patches": [(1, 1, p), (MOST, n, p), (MOST, n, p)], "visible_indices": [(1, 1), *[(MOST, n)] * 2]},
    ]
    assert decoder.profiles == [
        {
            "latent": [(1, 2, d), (least, 1 + quarter, d), (least, 1 + n, d)],
            "restore_indices": [(1, n), (least, n), (least, n)],
            "patches": [(1, n, p), (least, n, p), (least, n, p)],
        }
        for least in (1, MOST)
    ]

    assert (padded.inputs, padded.outputs, padded.profiles) == (encoder.inputs, encoder.outputs, encoder.profiles[1:])

    for network, depth in ((encoder, config.depth), (padded, config.depth), (decoder, config.decoder_depth)):
        kinds = trt.LayerType
        assert of_kind(network, kinds.ATTENTION_OUTPUT) == {half: depth}, "one fused layer a block"
        assert of_kind(network, kinds.NORMALIZATION) == {single: 2 * depth + 1}
        assert of_kind(network, kinds.MATRIX_MULTIPLY).keys() == {half}
    assert of_kind(encoder, kinds.MATRIX_MULTIPLY) == {half: 4 * config.depth + 1}
    assert of_kind(decoder, kinds.MATRIX_MULTIPLY) == {half: 4 * config.decoder_depth + 2}


SHALLOW = MAEConfig(**{**PRESETS["mae_tiny"].model_dump(), "name": "shallow", "depth": 1, "decoder_depth": 1})


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_products_have_the_precision_that_was_asked_for(
    precision: str, networks: list[Network], tmp_path: Path
) -> None:
    networks.clear()
    build(SHALLOW, precision, tmp_path)
    dtype = {"bf16": trt.DataType.BF16, "fp32": trt.DataType.FLOAT}[precision]
    for network in networks:
        assert of_kind(network, trt.LayerType.MATRIX_MULTIPLY).keys() == {dtype}
        assert of_kind(network, trt.LayerType.NORMALIZATION).keys() == {trt.DataType.FLOAT}
        fused, softmax = (of_kind(network, kind) for kind in (trt.LayerType.ATTENTION_OUTPUT, trt.LayerType.SOFTMAX))
        assert (fused, softmax) == (({}, {dtype: 1}) if precision == "fp32" else ({dtype: 1}, {}))


def test_a_largest_batch_of_one_needs_no_profile_for_a_single_image(networks: list[Network], tmp_path: Path) -> None:
    networks.clear()
    build(SHALLOW, "fp16", tmp_path, most=1)
    assert [len(network.profiles) for network in networks] == [2, 1]


def test_a_convolutional_model_is_built_as_well(networks: list[Network], tmp_path: Path) -> None:
    networks.clear()
    config = PRESETS["resnet_tiny"]
    build(config, "fp16", tmp_path)
    assert len(networks) == 2
    for network in networks:
        assert of_kind(network, trt.LayerType.CONVOLUTION).keys() == {trt.DataType.HALF}
        assert of_kind(network, trt.LayerType.NORMALIZATION).keys() == {trt.DataType.FLOAT}


def test_a_graph_that_does_not_convert_whole_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    class Sorting(torch.nn.Module):
        def forward(self, patches: torch.Tensor, visible_indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            latent = torch.linalg.qr(patches.float())[0]
            return latent[:, :2], latent + visible_indices[..., None]

    batch, k = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("k", min=1, max=196)
    example = (torch.zeros(3, 49, 768, dtype=torch.uint8), torch.zeros(3, 49, dtype=torch.int32))
    program = torch.export.export(Sorting(), example, dynamic_shapes=({0: batch, 1: k}, {0: batch, 1: k}))
    with pytest.raises(TensorRTError, match=r"TensorRT cannot build the encoder: ."):
        tensorrt_build.build_engine("encoder", program, SHALLOW, "fp16", MOST)


def test_an_entry_holds_engines_facts_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensorrt_build.build_engines
    monkeypatch.setattr(tensorrt_build, "build_engines", lambda *of: whole(*of, device="cpu"))
    save(tmp_path / "weights.safetensors", fresh(SHALLOW))
    spec, folder = ModelSpec(str(tmp_path / "weights.safetensors")), tmp_path / "entry"
    folder.mkdir()
    convert.convert(ConversionJob(spec, "tensorrt", "fp16", 16), folder, lambda words: None)
    assert {path.name for path in folder.iterdir()} == {
        "encoder.engine",
        "encoder_padded.engine",
        "decoder.engine",
        entry.MODEL,
        entry.REFERENCE,
    }
    _, model = load_model(spec)
    assert entry.read_model(folder) == model
    assert np.isfinite(entry.read_reference(folder).whole).all()


@pytest.mark.parametrize(
    ("code", "works"),
    [
        ("from model.engines.cuda.tensorrt_build import import_torch_tensorrt; import_torch_tensorrt()", True),
        ("import torch_tensorrt", False),  # else there would be nothing to do
    ],
)
def test_a_user_without_a_name_can_build(code: str, works: bool) -> None:
    """As in a container that is run with --user."""
    before = (
        "import os, torch; os.getuid = lambda: 54321; torch.cuda.get_device_capability = lambda *of: (9, 0); "
        "torch.cuda.current_device = lambda: 0"
    )
    child = subprocess.run([sys.executable, "-c", f"{before}; {code}"], capture_output=True, text=True)
    assert (child.returncode == 0) is works, child.stderr
    assert works or "uid not found: 54321" in child.stderr


def test_the_real_runtime_is_spoken_to_in_its_own_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a driver it can load nothing: but it says so through our logger, and has all that we call."""
    (tmp_path / "encoder.engine").write_bytes(b"no engine" * 100)
    info = fake_info(MAEConfig(**{**SHALLOW.model_dump(), "decoder_depth": 0}))
    with pytest.raises(TensorRTError, match=r"TensorRT cannot load the encoder: .*(Error|error)"):
        TensorRTGraphs(tmp_path, info, trt)
    for owner, names in {
        trt.ICudaEngine: (
            "get_device_memory_size_for_profile_v2",
            "num_optimization_profiles",
            "create_execution_context",
        ),
        trt.IExecutionContext: (
            "set_optimization_profile_async",
            "set_device_memory",
            "set_input_shape",
            "set_tensor_address",
            "execute_async_v3",
        ),
        trt.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
    }.items():
        assert [name for name in names if not hasattr(owner, name)] == []


def test_a_norm_after_the_pooling_is_built_too(networks: list[Network], tmp_path: Path) -> None:
    """Of a classifier that was fine-tuned on the mean of its tokens: it has no decoder, and as many norms as others."""
    sizes = {"embed_dim": 192, "depth": 2, "num_heads": 3, "decoder_depth": 0}
    norms = []
    for final_norm in ("tokens", "pooled"):
        config = MAEConfig.model_validate(sizes | {"name": final_norm, "final_norm": final_norm})
        networks.clear()
        folder = tmp_path / final_norm
        folder.mkdir()
        said = build(config, "fp16", folder)
        assert [line.partition(" (")[0] for line in said] == [
            f"building the TensorRT engine of {final_norm}'s {name}" for name in ("encoder", "encoder_padded")
        ]
        assert [network.outputs["pooled"] for network in networks] == [(trt.DataType.FLOAT, (-1, 2, 192))] * 2
        norms.append([of_kind(network, trt.LayerType.NORMALIZATION) for network in networks])
    assert norms[0] == norms[1]
    assert sum(norms[1][0].values()) == 2 * config.depth + 1
