"""From settings to an engine on a GPU: TensorRT, its cache, its parity check, torch in its place; with stand-ins."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.errors import WeightsError
from model.engines.backend import NO_TENSORRT
from model.engines.base import EngineBuildError, TensorRTError
from model.engines.build import build
from model.engines.cache import fingerprint
from model.engines.cuda import build as module
from model.engines.cuda.build import tensorrt_ingredients
from model.engines.job import ModelSpec
from model.engines.parity import ParityError
from model.engines.settings import EngineSettings
from tests.model.engines.cuda.conftest import CARD, Machine
from tests.support.engines import with_changes

pytestmark = pytest.mark.slow


def spec(tmp_path: Path, weights: str, **given: Any) -> EngineSettings:
    return EngineSettings(engine_cache=tmp_path / "cache", weights=weights, **{"max_batch": 12, **given})


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_tensorrt_serves(machine: Machine, tmp_path: Path, weights: str, backend: Any, cuda_graphs: bool) -> None:
    said: list[str] = []
    asked = spec(tmp_path, weights, backend=backend, cuda_graphs=cuda_graphs)
    info = build(asked, said.append).info
    assert (info.backend, info.precision, info.fallback) == ("tensorrt", "fp16", None)
    assert (info.lanes, info.preferred_batch) == (2, 12)
    assert info.versions["torch-tensorrt"] == "2.14.0"
    assert (info.versions["tensorrt"], info.versions["driver"]) == ("10.0", "580.65")
    assert info.parity is not None and info.parity.cosine >= 0.999
    assert info.mixes
    (job,) = machine.jobs
    assert (job.target, job.precision, job.max_batch_size) == ("tensorrt", "fp16", 12)
    assert said[0] == "making the engine of narrow for tensorrt"
    assert any("onto Pretend 9000" in line for line in said)
    build(asked, said.append)
    assert len(machine.jobs) == 1, "the second start finds the engines"


def test_the_largest_batch_is_64_and_precision_is_the_operators(machine: Machine, tmp_path: Path, weights: str) -> None:
    info = build(spec(tmp_path, weights, max_batch=None, lanes=1, precision="bf16")).info
    assert (machine.jobs[0].max_batch_size, machine.jobs[0].precision) == (64, "bf16")
    assert (info.lanes, info.preferred_batch, info.precision) == (1, 64, "bf16")


# --- what fails


FAILURES = {
    "cannot be imported": lambda machine: setattr(machine, "import_failure", TensorRTError("libnvinfer is missing")),
    "cannot build": lambda machine: setattr(machine, "failure", TensorRTError("no such layer")),
    "cannot load": lambda machine: setattr(machine, "written", lambda name: "nonsense"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_torch_serves_where_tensorrt_fails_and_says_why(
    machine: Machine, tmp_path: Path, weights: str, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    FAILURES[failure](machine)
    info = build(spec(tmp_path, weights)).info
    assert (info.backend, info.precision) == ("torch", "fp16")
    assert info.fallback is not None and info.fallback.startswith("TensorRT has failed: ")
    assert f"serving by torch on cuda: {info.fallback}" in caplog.text
    assert info.parity is not None and info.parity.cosine >= 0.999


@pytest.mark.parametrize("failure", FAILURES)
def test_tensorrt_by_name_never_falls_back(machine: Machine, tmp_path: Path, weights: str, failure: str) -> None:
    FAILURES[failure](machine)
    with pytest.raises(TensorRTError):
        build(spec(tmp_path, weights, backend="tensorrt"))


def test_torch_serves_where_there_is_no_tensorrt(machine: Machine, tmp_path: Path, weights: str) -> None:
    machine.distribution = None
    info = build(spec(tmp_path, weights)).info
    assert (info.backend, info.precision, info.fallback) == ("torch", "fp16", NO_TENSORRT)


@pytest.mark.parametrize(
    ("given", "error"),
    [({"image_size": 33}, EngineBuildError), ({"weights": "cat.safetensors"}, WeightsError)],
)
def test_what_the_operator_got_wrong_is_no_failure_of_tensorrts(
    machine: Machine, tmp_path: Path, weights: str, given: Any, error: type[Exception], caplog: Any
) -> None:
    if "weights" in given:
        path = tmp_path / given["weights"]
        path.write_bytes(b"cat")
        given = {"weights": str(path)}
    with pytest.raises(error):
        build(with_changes(spec(tmp_path, weights), **given))
    assert "serving by torch" not in caplog.text


# --- the parity check


class Shifted(torch.nn.Module):
    """Adds to what a graph says of batches that are large enough."""

    def __init__(self, graph: torch.nn.Module, amount: float, least: int = 1) -> None:
        super().__init__()
        self.graph, self.amount, self.least = graph, amount, least

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.graph(*inputs)
        if len(first) < self.least:
            return first, second
        first = first.clone()
        first.flatten(1)[-1, ::2] += self.amount  # the last image of the batch alone
        return first, second


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
@pytest.mark.parametrize(
    ("graph", "amount", "least", "message"),
    [
        ("encoder", 0.3, 1, r"embeddings in batches of 1 .* centred cosine 0\.\d+, at least 0\.999 .*PARITY_COSINE"),
        ("encoder", 0.3, 12, r"embeddings in batches of 12 .* centred cosine 0\.\d+, at least 0\.999 "),
        ("encoder", float("nan"), 12, r"embeddings in batches of 12 .* centred cosine nan"),
        ("encoder_padded", 0.3, 2, r"embeddings in padded batches .* centred cosine 0\.\d+, at least 0\.999 "),
        ("decoder", 9, 12, r"reconstructions in batches of 12 .* PSNR \d+\.\d dB, at least 40\.0 .*PARITY_PSNR_DB"),
    ],
)
def test_wrong_numbers_are_never_served_and_nothing_takes_their_place(
    machine: Machine, tmp_path: Path, weights: str, backend: Any, graph: str, amount: float, least: int, message: str
) -> None:
    machine.alter = lambda name, made: Shifted(made, amount, least) if name == graph else made
    with pytest.raises(ParityError, match=message):
        build(spec(tmp_path, weights, backend=backend))


def test_the_operator_may_set_the_bar_lower(machine: Machine, tmp_path: Path, weights: str) -> None:
    machine.alter = lambda name, made: Shifted(made, 0.05) if name == "encoder" else made
    with pytest.raises(ParityError):
        build(spec(tmp_path, weights))
    info = build(spec(tmp_path, weights, parity_cosine=0.5)).info
    assert info.parity is not None and 0.5 < info.parity.cosine < 0.999


# --- the store


def test_a_damaged_or_foreign_engine_is_built_again_and_never_loaded(
    machine: Machine, tmp_path: Path, weights: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = spec(tmp_path, weights, backend="tensorrt")
    build(asked)
    (entry,) = (tmp_path / "cache").glob("tensorrt-*")
    other = with_changes(asked, max_batch=6)
    build(other)
    (foreign,) = set((tmp_path / "cache").glob("tensorrt-*")) - {entry}

    def flip() -> None:
        (entry / "encoder.engine").write_bytes(b"encodes")

    def replace_entry() -> None:
        shutil.rmtree(entry)
        shutil.copytree(foreign, entry)

    for number, damage in enumerate(
        (flip, (entry / "decoder.engine").unlink, lambda: (entry / "encoder.engine").write_bytes(b"enc"), replace_entry)
    ):
        damage()
        caplog.clear()
        assert build(asked).info.backend == "tensorrt"
        assert len(machine.jobs) == 3 + number
        assert "damaged" in caplog.text
    assert machine.jobs[-1].max_batch_size == 12


def test_every_ingredient_makes_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", lambda name: "1")
    plain: dict[str, Any] = {
        "model": ModelSpec("weights.safetensors"),
        "digest": "a" * 64,
        "precision": "fp16",
        "max_batch_size": 64,
        "gpu": CARD,
        "distribution": "torch-tensorrt",
        "runtime": "10.0",
    }
    names = [fingerprint(tensorrt_ingredients(**plain))]
    for change in (
        {"digest": "b" * 64},
        {"model": ModelSpec("weights.safetensors", preset="mae_tiny")},
        {"model": ModelSpec("weights.safetensors", norm_pix_loss=True)},
        {"model": ModelSpec("weights.safetensors", image_size=448)},
        {"model": ModelSpec("weights.safetensors", preprocess={"mean": [0, 0, 0]})},
        {"precision": "bf16"},
        {"max_batch_size": 32},
        {"gpu": replace(CARD, name="Another")},
        {"gpu": replace(CARD, capability="8.9")},
        {"gpu": replace(CARD, driver="590.1")},
        {"distribution": "torch-tensorrt-rtx"},
        {"runtime": "10.1"},
    ):
        names.append(fingerprint(tensorrt_ingredients(**plain | change)))
    for package in ("torch", "torch-tensorrt"):
        monkeypatch.setattr(module, "version", lambda name, changed=package: "2" if name == changed else "1")
        names.append(fingerprint(tensorrt_ingredients(**plain)))
    monkeypatch.setattr(module, "version", lambda name: "1")
    monkeypatch.setattr(module, "code_digest", lambda kind: "other graphs, other profiles")
    names.append(fingerprint(tensorrt_ingredients(**plain)))
    assert len(set(names)) == len(names)
    moved = fingerprint(tensorrt_ingredients(**plain | {"model": ModelSpec("elsewhere.safetensors")}))
    assert moved == names[-1], "where the weights lie does not matter"
