"""Lanes, buffers, streams and recordings, with a CPU in the place of a GPU and torch's own graphs.

What an image gets is compared with the reference engine, which knows nothing of lanes.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints.checkpoint import Checkpoint
from model.config import Preprocessing
from model.engines.base import Engine, EngineError, EngineInfo, FatalEngineError, gather_visible
from model.engines.cuda.engine import DeviceEngine
from model.engines.cuda.profiles import decoder_profiles, encoder_profiles, padded_profiles
from model.engines.cuda.tensorrt import TensorRTGraphs
from model.engines.cuda.torch_graphs import CompiledTorchGraphs, TorchGraphs
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER, build_graphs
from model.engines.job import LoadedModel
from model.engines.outputs import collect_outputs
from model.engines.parity import ParityError, check_parity, tolerance_for
from model.engines.reference import reference_engine
from model.masking import PAD
from model.nn.vit import MaskedAutoencoder
from service.inference.executor import stack_padded
from tests.support import pretend_tensorrt
from tests.support.engines import NARROW, fake_info

MOST = 6


@dataclass
class Model:
    """A small one, and what it should answer."""

    checkpoint: Checkpoint
    info: EngineInfo
    reference: Engine


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    made = MaskedAutoencoder(NARROW)
    for name, parameter in made.named_parameters():
        if name.endswith(("mask_token", "cls_token", "bias")):
            torch.nn.init.normal_(parameter, std=0.5)  # fresh ones are zeros, in which no mistake shows
    checkpoint = Checkpoint(NARROW, Preprocessing(), "mae-serve", dict(made.state_dict()))
    facts = LoadedModel(NARROW, Preprocessing(), "mae-serve", None)
    info = fake_info(NARROW, lanes=2, preferred_batch=MOST).model_copy(update={"mixes": True})
    return Model(checkpoint, info, reference_engine(checkpoint, facts))


def torch_graphs(model: Model, folder: Path) -> Any:
    return TorchGraphs(model.checkpoint, model.info)


def compiled_graphs(model: Model, folder: Path) -> Any:
    return CompiledTorchGraphs(TorchGraphs(model.checkpoint, model.info))


def tensorrt_graphs(model: Model, folder: Path) -> Any:
    config = model.info.config
    graphs = build_graphs(model.checkpoint, config, model.info.preprocessing, to_bytes=False, padded=True)
    for name in graphs:
        (folder / f"{name}.engine").write_text(name)
    profiles = {
        ENCODER: encoder_profiles(config, MOST),
        PADDED_ENCODER: padded_profiles(config, MOST),
        DECODER: decoder_profiles(config, MOST),
    }
    return TensorRTGraphs(folder, model.info, pretend_tensorrt.runtime(graphs, profiles))


@pytest.fixture(params=[torch_graphs, compiled_graphs, tensorrt_graphs])
def graphs(
    request: pytest.FixtureRequest, cuda: None, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    with torch.inference_mode():
        return request.param(model, tmp_path)


@pytest.fixture(params=[False, True], ids=["as they come", "recorded"])
def engine(request: pytest.FixtureRequest, graphs: Any, model: Model) -> DeviceEngine:
    return DeviceEngine(graphs, model.info, request.param)


def places(visible: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(visible)
    return np.stack([np.sort(generator.permutation(16)[:visible]) for _ in range(count)]).astype(np.int32)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 192), dtype=np.uint8)


def same(found: Any, expected: Any, tolerance: float) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.abs(found.astype(np.float64) - expected).max() <= tolerance


# Sizes in such an order that each batch finds the remains of a larger one in its buffers.
@pytest.mark.parametrize("visible", [16, 4, 7])
def test_batches_of_every_size_get_what_the_reference_gives(engine: DeviceEngine, model: Model, visible: int) -> None:
    for size in (6, 3, 1, 5):
        patches, visible_indices = images(size, seed=size), places(visible, size)
        seen = gather_visible(patches, visible_indices)
        lane = size % 2
        same(engine.embed(lane, seen, visible_indices), model.reference.embed(0, seen, visible_indices), 1e-4)
        same(engine.tokens(lane, seen, visible_indices), model.reference.tokens(0, seen, visible_indices), 1e-3)
        pixels, error = engine.reconstruct(lane, patches, visible_indices)
        painted, squared = model.reference.reconstruct(0, patches, visible_indices)
        same(pixels, painted, 1)
        same(error, squared, 1e-3)


@pytest.mark.parametrize("counts", [(16, 4), (3, 4, 1), (7, 16, 2, 7, 5, 1)])
def test_images_of_a_padded_batch_get_what_each_gets_alone(
    engine: DeviceEngine, model: Model, counts: tuple[int, ...]
) -> None:
    patches = images(len(counts), seed=sum(counts))
    alone = [places(count, 1)[0] for count in counts]
    visible_indices = stack_padded(alone, PAD)
    seen = stack_padded([image[where] for image, where in zip(patches, alone, strict=True)], 255)
    pooled, tokens = engine.embed(1, seen, visible_indices), engine.tokens(0, seen, visible_indices)
    pixels, error = engine.reconstruct(1, patches, visible_indices)
    for row, where in enumerate(alone):
        one = (patches[row : row + 1, where], where[None])
        same(pooled[row : row + 1], model.reference.embed(0, *one), 1e-4)
        same(tokens[row : row + 1, : len(where)], model.reference.tokens(0, *one), 1e-3)
        painted, squared = model.reference.reconstruct(0, patches[row : row + 1], where[None])
        same(pixels[row : row + 1], painted, 1)
        same(error[row : row + 1], squared, 1e-3)


def test_the_gate_sees_when_images_of_a_padded_batch_meet(graphs: Any, model: Model) -> None:
    engine = DeviceEngine(graphs, model.info)
    expected = collect_outputs(model.reference)
    assert check_parity(engine, expected, tolerance_for("fp32")).cosine > 0.999999
    right = engine._graphs.encode

    def attending_to_nothing(
        lane: int, patches: Any, visible_indices: Any, pooled: Any, latent: Any, padded: bool
    ) -> None:
        right(lane, patches, visible_indices.clamp_(min=0), pooled, latent, False)

    engine._graphs.encode = attending_to_nothing  # type: ignore[method-assign]
    with pytest.raises(ParityError, match="embeddings in padded batches differ"):
        check_parity(engine, expected, tolerance_for("fp32"))


def test_padded_batches_are_refused_where_they_would_be_misread(graphs: Any, model: Model) -> None:
    engine = DeviceEngine(graphs, model.info.model_copy(update={"mixes": False}))
    with pytest.raises(EngineError, match="different numbers of visible patches"):
        engine.embed(0, images(2), stack_padded([places(16, 1)[0], places(4, 1)[0]], PAD))


def test_a_batch_that_is_filled_up_reads_nothing_of_an_earlier_one(engine: DeviceEngine, model: Model) -> None:
    """What six images with three patches each left where the fourth of four is: places that lie beyond four images."""
    engine.reconstruct(0, images(6), places(3, 6))
    patches, visible_indices = images(3, seed=1), places(4, 3)
    same(
        engine.reconstruct(0, patches, visible_indices)[0],
        model.reference.reconstruct(0, patches, visible_indices)[0],
        1,
    )


def test_answers_are_not_overwritten_by_the_next_batch(engine: DeviceEngine) -> None:
    visible_indices = places(4, 2)
    first = engine.reconstruct(0, images(2), visible_indices)
    kept = [array.copy() for array in first]
    engine.reconstruct(0, images(2, seed=1), visible_indices)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


def test_lanes_at_once_do_not_meet(engine: DeviceEngine, model: Model) -> None:
    """Each thread has a stream of its own in torch; here they take turns, but share no buffer."""
    batches = [(images(3, seed), places(4, 3)) for seed in range(2)]
    expected = [model.reference.reconstruct(0, *batch)[0] for batch in batches]
    turn = threading.Lock()
    failures: list[int] = []

    def work(lane: int) -> None:
        for _ in range(3):
            with turn:
                pixels, _ = engine.reconstruct(lane, *batches[lane])
            if np.abs(pixels.astype(int) - expected[lane]).max() > 1:
                failures.append(lane)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_usual_batches_are_replayed_and_others_are_not(graphs: Any, model: Model) -> None:
    engine = DeviceEngine(graphs, model.info, cuda_graphs=True)
    replays = lambda: {key: graph.replays for key, graph in engine._lanes[0].graphs.items() if graph.replays}  # type: ignore[attr-defined]  # noqa: E731
    assert len(engine._lanes[1].graphs) == 3 * 4  # batches of 1, 2, 4 and 6
    engine.embed(0, images(3), places(16, 3))
    assert replays() == {("encode", 4, 16): 1}
    engine.tokens(0, images(5)[:, :4], places(4, 5))
    engine.reconstruct(0, images(1), places(4, 1))
    usual = {("encode", 4, 16): 1, ("encode", 6, 4): 1, ("reconstruct", 1, 4): 1}
    assert replays() == usual
    engine.embed(0, images(2)[:, :5], places(5, 2))
    engine.reconstruct(0, images(2), places(8, 2))
    assert replays() == usual


def test_compiled_graphs_run_in_recordings_alone(cuda: None, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of another size could need a compilation, in the middle of a request."""
    compiled: list[tuple[int, ...]] = []

    def compile_graph(graph: torch.nn.Module, **options: object) -> Any:
        assert options == {"fullgraph": True, "dynamic": True}

        def run(*inputs: torch.Tensor) -> Any:
            compiled.append(tuple(inputs[0].shape))
            return graph(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compile_graph)
    engine = DeviceEngine(CompiledTorchGraphs(TorchGraphs(model.checkpoint, model.info)), model.info, cuda_graphs=True)
    usual = {(size, visible, 192) for size in (1, 2, 4, 6) for visible in (16, 4)}
    assert set(compiled) == usual | {(size, 1 + 4, 32) for size in (1, 2, 4, 6)}
    compiled.clear()
    for visible in (16, 4, 7, 1):
        engine.embed(0, images(3)[:, :visible], places(visible, 3))
        if visible != 4:
            engine.reconstruct(1, images(3), places(visible, 3))
    engine.reconstruct(0, images(3), places(4, 3))
    padded = stack_padded([places(16, 1)[0], places(4, 1)[0]], PAD)
    engine.embed(0, images(2), padded)
    assert compiled == []


def test_recording_ends_where_it_is_told_to(cuda: None, model: Model) -> None:
    steps: list[int] = []

    def proceed() -> None:
        steps.append(len(steps))
        if len(steps) == 3:
            raise EngineError("enough")

    with pytest.raises(EngineError, match="enough"):
        DeviceEngine(TorchGraphs(model.checkpoint, model.info), model.info, True, proceed)
    assert steps == [0, 1, 2]


def test_more_than_the_largest_batch_is_refused(engine: DeviceEngine) -> None:
    with pytest.raises(EngineError, match="7 images in one batch: the engine takes 6"):
        engine.embed(0, images(7), places(16, 7))


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), EngineError),
        (torch.AcceleratorError("CUDA error: device-side assert triggered", 710), FatalEngineError),
    ],
)
def test_what_the_device_survives_is_told_from_what_it_does_not(
    graphs: Any, model: Model, monkeypatch: pytest.MonkeyPatch, raised: Exception, becomes: type[Exception]
) -> None:
    engine = DeviceEngine(graphs, model.info)

    def fail(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(engine._graphs, "encode", fail)
    with pytest.raises(EngineError) as error:
        engine.embed(0, images(1), places(16, 1))
    assert type(error.value) is becomes
    assert str(raised) in str(error.value)


def test_a_norm_after_the_pooling_is_in_every_graph_and_under_the_parity_check(cuda: None) -> None:
    config = NARROW.model_copy(update={"decoder_depth": 0, "final_norm": "pooled"})
    torch.manual_seed(0)
    tensors = {name: torch.randn(tensor.shape) * 0.3 for name, tensor in MaskedAutoencoder(config).state_dict().items()}
    checkpoint = Checkpoint(config, Preprocessing(), "facebookresearch", tensors)
    info = fake_info(config, lanes=2, preferred_batch=MOST).model_copy(update={"mixes": True})
    expected = collect_outputs(reference_engine(checkpoint, LoadedModel(config, Preprocessing(), "", None)))
    with torch.inference_mode():
        parity = check_parity(
            DeviceEngine(TorchGraphs(checkpoint, info), info), expected, tolerance_for("fp32"), (1, MOST)
        )
        assert parity.cosine > 0.999999
        shifted = tensors | {"fc_norm.weight": tensors["fc_norm.weight"].flip(0)}
        wrong = Checkpoint(config, Preprocessing(), "facebookresearch", shifted)
        with pytest.raises(ParityError, match="embeddings differ from eager float32"):
            check_parity(DeviceEngine(TorchGraphs(wrong, info), info), expected, tolerance_for("fp32"))
