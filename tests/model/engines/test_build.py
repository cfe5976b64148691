"""From settings to an engine: what is chosen, what is made, what is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints import checkpoint
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import PACKAGED
from model.config import Preprocessing
from model.engines import context
from model.engines.base import Engine, EngineBuildError, EngineError
from model.engines.build import build
from model.engines.child import convert_in_child
from model.engines.cpu import available_cpus
from model.engines.entry import read_reference
from model.engines.fixed_images import fixed_patches
from model.engines.job import ConversionJob, ModelSpec
from model.engines.openvino import entries as openvino_entries
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.outputs import collect_outputs
from model.engines.parity import TOLERANCES, ParityError, measure_parity
from model.engines.settings import EngineSettings
from model.nn.vit import MaskedAutoencoder
from tests.support.conversion import conversions_in_process
from tests.support.engines import NARROW, with_changes


def write(path: Path, seed: int = 0, **config: Any) -> Path:
    """A small checkpoint with random weights."""
    made = NARROW.model_copy(update=config)
    torch.manual_seed(seed)
    tensors = dict(MaskedAutoencoder(made).state_dict())
    checkpoint.save(path, Checkpoint(made, Preprocessing(), "mae-serve", tensors))
    return path


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("weights") / "narrow.safetensors"))


@pytest.fixture(scope="module")
def encoder_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("weights") / "encoder.safetensors", decoder_depth=0))


# --- what an engine says of itself


@pytest.fixture(scope="module", params=[pytest.param("openvino", marks=pytest.mark.converts), "torch"])
def packaged(request: pytest.FixtureRequest, engine_cache: Path) -> Engine:
    with conversions_in_process():
        return build(EngineSettings(engine_cache=engine_cache, backend=request.param, precision="fp32")).engine


def test_the_packaged_model_passes_the_parity_check(packaged: Engine) -> None:
    found = packaged.info.parity
    assert found is not None
    assert found.cosine > 0.999999
    assert found.psnr_db is not None
    assert found.psnr_db > 60
    assert found.loss_difference is not None
    assert found.loss_difference < 1e-3


def test_an_engine_says_what_it_is(engine: Engine, probe: Path) -> None:
    info = engine.info
    assert info.weights == hashlib.sha256(probe.read_bytes()).hexdigest()
    assert info.model_id == f"mae_tiny@{info.weights[:12]}"
    assert (info.device, info.precision, info.fallback, info.layout) == ("cpu", "fp32", None, "mae-serve")
    assert {"mae-serve", "numpy", "torch", "openvino"} <= info.versions.keys()
    assert info.versions["numpy"] == np.__version__


# --- what the operator says


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"image_size": 100}, "IMAGE_SIZE: image_size 100 is not a multiple of patch_size 16"),
        ({"preprocess": {"filter": "cubic"}}, "PREPROCESS.filter: Input should be 'nearest'"),
        ({"preprocess": {"size": 224}}, "PREPROCESS.size: Extra inputs are not permitted"),
        ({"preprocess": {"std": [0, 1, 1]}}, "PREPROCESS: mean must be finite and std positive"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, spec: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineBuildError) as refusal:
        build(EngineSettings(engine_cache=tmp_path, backend="torch", **spec))
    assert f"the model cannot be served like this: {named}" in str(refusal.value)


def test_preprocessing_is_replaced_in_parts(tmp_path: Path, narrow: str) -> None:
    engine = build(
        EngineSettings(
            engine_cache=tmp_path, weights=narrow, backend="torch", preprocess={"resize": "squash", "mean": (0, 0, 0)}
        )
    ).engine
    assert engine.info.preprocessing == Preprocessing(resize="squash", mean=(0, 0, 0))


def test_heads_are_the_operators_and_assumptions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    lite = NARROW.model_copy(update={"embed_dim": 192})
    torch.save(MaskedAutoencoder(lite).state_dict(), tmp_path / "lite.pth")
    settings = EngineSettings(engine_cache=tmp_path, weights=str(tmp_path / "lite.pth"), backend="torch", heads="12,4")  # type: ignore[arg-type]
    info = build(settings).info
    assert (info.config.num_heads, info.config.decoder_num_heads) == (12, 4)
    assert [note[:50] for note in info.notes] == ["it does not tell how its images were prepared, so "]
    assert f"lite: {info.notes[0]}" in caplog.text


def test_lanes_share_the_cpus(tmp_path: Path, narrow: str) -> None:
    before = torch.get_num_threads()
    try:
        lanes = 2 * available_cpus()
        engine = build(
            EngineSettings(engine_cache=tmp_path, weights=narrow, backend="torch", lanes=lanes, max_batch=3)
        ).engine
        assert (engine.info.lanes, engine.info.preferred_batch, engine.info.threads_per_lane) == (lanes, 3, 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_half_precision_passes_a_bar_of_its_own(tmp_path: Path, precision: Any) -> None:
    engine = build(EngineSettings(engine_cache=tmp_path, backend="torch", precision=precision)).engine
    found = engine.info.parity
    assert engine.info.precision == precision
    assert found is not None
    assert 0.999 <= found.cosine < 0.999999


def test_a_larger_image_gives_a_larger_grid(tmp_path: Path, narrow: str) -> None:
    engine = build(EngineSettings(engine_cache=tmp_path, weights=narrow, backend="torch", image_size=64)).engine
    assert engine.info.config.num_patches == 64
    patches = fixed_patches(engine.info.config)[:1]
    everywhere = np.arange(64, dtype=np.int32)[None]
    assert engine.tokens(0, patches, everywhere).shape == (1, 64, 32)
    pixels, error = engine.reconstruct(0, patches, everywhere[:, ::4])
    assert (pixels.shape, error.shape) == ((1, 64, 192), (1, 64))


# --- the parity check


def vector_of(probe: Path, name: str) -> np.ndarray:
    """A one-dimensional weight of the probe model, which OpenVINO keeps as it is."""
    tensors = checkpoint.load(probe).tensors
    return tensors[name].numpy()


def alter(cache: Path, probe: Path, graph: str, weight: str, change: Callable[[np.ndarray], None]) -> Path:
    """Changes a weight inside the compiled graph of a cache's only entry, which then looks whole."""
    (entry,) = cache.glob("openvino-*")
    path = entry / f"{graph}.bin"
    content = path.read_bytes()
    found = vector_of(probe, weight)
    assert content.count(found.tobytes()) == 1
    changed = found.copy()
    change(changed)
    path.write_bytes(content.replace(found.tobytes(), changed.tobytes()))
    manifest = entry / "manifest.json"
    digests = json.loads(manifest.read_text())
    digests["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(digests))
    return entry


@pytest.fixture
def probe_cache(openvino_engine: Engine, engine_cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache with the probe model's entry alone."""
    name = str(openvino_engine.info.entry)
    shutil.copytree(engine_cache / name, tmp_path / "cache" / name)
    return tmp_path / "cache"


def add(index: int, amount: float) -> Callable[[np.ndarray], None]:
    def change(weight: np.ndarray) -> None:
        weight[index] += amount

    return change


@pytest.mark.parametrize(
    ("graph", "weight", "index", "amount", "message"),
    [
        ("encoder", "blocks.2.mlp.fc1.bias", 5, 1.0, "embeddings differ"),
        ("encoder", "norm.bias", 7, 0.1, "embeddings differ"),  # which shifts all vectors by the same amount
        ("encoder", "blocks.11.mlp.fc2.bias", 3, float("nan"), "embeddings differ"),
        ("decoder", "decoder_blocks.0.mlp.fc1.bias", 9, 1.0, "reconstruct"),
        ("decoder", "decoder_pred.bias", 100, 2.0, "reconstruct"),
        ("decoder", "decoder_norm.weight", 3, float("nan"), "reconstruct"),
    ],
)
def test_one_weight_that_was_changed_keeps_the_engine_from_serving(
    probe_cache: Path, probe: Path, graph: str, weight: str, index: int, amount: float, message: str
) -> None:
    alter(probe_cache, probe, graph, weight, add(index, amount))
    with pytest.raises(ParityError, match=message):
        build(EngineSettings(engine_cache=probe_cache, weights=str(probe), backend="openvino", precision="fp32"))


def test_plain_cosine_would_have_let_a_changed_weight_pass(
    openvino_engine: Engine, probe: Path, probe_cache: Path
) -> None:
    entry = alter(probe_cache, probe, "encoder", "blocks.2.mlp.fc1.bias", add(5, 1.0))
    found, expected = collect_outputs(OpenVINOEngine(entry, openvino_engine.info)), read_reference(entry)
    a, b = found.whole.astype(np.float64), expected.whole.astype(np.float64)
    plain = ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min()
    bar = TOLERANCES["fp32"].cosine
    assert plain > bar
    assert measure_parity(found, expected, openvino_engine.info.config).cosine < 0.9999 < bar


def test_an_entry_that_was_damaged_is_converted_again(
    probe: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = probe_cache.glob("openvino-*")
    good = shutil.copytree(entry, probe_cache.parent / "good")
    os.truncate(entry / "encoder.bin", 1000)
    converted = []

    def convert(job: Any, folder: Path, progress: Any, deadline: Any) -> None:
        converted.append(job)
        shutil.copytree(good, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()

    monkeypatch.setattr(context, "convert_in_child", convert)
    spec = EngineSettings(
        engine_cache=probe_cache, weights=str(probe), backend="openvino", precision="fp32", max_batch=4
    )
    for _ in range(2):
        assert build(spec).info.parity is not None
    assert len(converted) == 1


# --- the cache's fingerprint


class Converted(Exception):
    """Instead of a conversion; carries the name of the entry that would have been made."""


@pytest.fixture
def entry_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    def convert(job: Any, folder: Path, progress: Any, deadline: Any) -> None:
        raise Converted(folder.name.rpartition("-")[0])

    def entry(**spec: Any) -> str:
        monkeypatch.setattr(context, "convert_in_child", convert)
        monkeypatch.setattr(openvino_entries, "find_packaged", lambda *of: None)
        with pytest.raises(Converted) as made:
            build(EngineSettings(**{"engine_cache": tmp_path / "cache", "backend": "openvino"} | spec))
        return str(made.value)

    return entry


def test_whatever_changes_the_graphs_makes_another_entry(
    entry_of: Callable[..., str], tmp_path: Path, narrow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(write(tmp_path / "other.safetensors", seed=1))
    entries = [
        entry_of(weights=narrow),
        entry_of(weights=other),
        entry_of(weights=narrow, image_size=64),
        entry_of(weights=narrow, preprocess={"resize": "squash"}),
        entry_of(weights=narrow, preprocess={"mean": [0, 0, 0]}),
        entry_of(weights=narrow, norm_pix_loss=True),
        entry_of(weights=narrow, norm_pix_loss=False),
        entry_of(weights=narrow, heads=(4,)),
        entry_of(weights=narrow, heads=(4, 4)),
        entry_of(weights=narrow, model="mae_tiny"),
    ]
    for what in ("version", "code_digest"):
        with monkeypatch.context() as changed:
            changed.setattr(openvino_entries, what, lambda *name: "another")
            entries.append(entry_of(weights=narrow))
    assert len(set(entries)) == len(entries)


def test_what_does_not_change_the_graphs_does_not(entry_of: Callable[..., str], tmp_path: Path, narrow: str) -> None:
    moved = shutil.copy(narrow, tmp_path / "moved.safetensors")
    entries = {
        entry_of(weights=narrow),
        entry_of(weights=str(moved)),
        entry_of(weights=narrow, engine_cache=tmp_path / "elsewhere"),
        entry_of(weights=narrow, lanes=7, max_batch=3, precision="bf16"),
    }
    assert len(entries) == 1


# --- the conversion, in a process of its own


@pytest.mark.converts
def test_an_encoder_alone_converts_in_silence_and_embeds_smaller_images_as_torch_does(
    encoder_only: str,
    engine_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Started where another package is called model, and with every warning made an error; 3 x 3 patches, not 4 x 4."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "error::FutureWarning")
    spec = EngineSettings(
        engine_cache=engine_cache,
        weights=encoder_only,
        backend="openvino",
        precision="fp32",
        image_size=24,
        max_batch=4,
    )
    engine = build(spec).engine
    assert capfd.readouterr() == ("", "")
    assert engine.info.parity is not None
    assert engine.info.parity.psnr_db is None
    assert not engine.info.config.has_decoder
    patches = fixed_patches(engine.info.config)
    everywhere = np.tile(np.arange(9, dtype=np.int32), (8, 1))
    assert engine.embed(0, patches, everywhere).shape == (8, 2, 32)
    by_torch = build(with_changes(spec, backend="torch")).engine
    assert np.abs(engine.embed(0, patches, everywhere) - by_torch.embed(0, patches, everywhere)).max() < 1e-4
    for one in (engine, by_torch):
        with pytest.raises(EngineError, match="no decoder"):
            one.reconstruct(0, patches, everywhere[:, :4])


@pytest.mark.live
def test_weights_that_the_child_cannot_read_are_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK no archive")
    with pytest.raises(WeightsError, match="is refused by PyTorch's safe loader"):
        build(EngineSettings(engine_cache=tmp_path / "cache", weights=str(path), backend="openvino"))
    assert list((tmp_path / "cache").glob("openvino-*")) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"ended by SIGKILL \(out of memory\?\)"),
        ("import os; os.kill(os.getpid(), 15)", "ended by SIGTERM$"),
        ("raise SystemExit(3)", "exit code 3"),
        ("print('{}'[:1]); raise SystemExit(1)", "exit code 1"),
    ],
)
@pytest.mark.live
def test_a_child_that_dies_without_a_word(
    tmp_path: Path, narrow: str, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    child = tmp_path / "python"
    child.write_text(f"#!{sys.executable}\n{command}\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    with pytest.raises(EngineBuildError, match=message):
        build(EngineSettings(engine_cache=tmp_path / "cache", weights=narrow, backend="openvino"))


@pytest.mark.live
@pytest.mark.parametrize(
    ("free", "message"), [(1_000_000, r"exit code 3 \(no space left in .*: 1.0 MB\)$"), (10**9, "exit code 3$")]
)
def test_a_conversion_that_has_filled_the_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, message: str
) -> None:
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    job = ConversionJob(ModelSpec("weights.safetensors"), "openvino")
    with pytest.raises(EngineBuildError, match=message):
        convert_in_child(job, tmp_path / "entry", print)


@pytest.mark.live
def test_a_conversion_ends_with_whoever_asked_for_it(tmp_path: Path) -> None:
    """Its lock is gone by then: it must not go on beside the next one's."""
    script = """
        import time
        from model.engines import convert

        def endless(job, folder, progress):
            progress("begun")
            time.sleep(600)

        convert.convert = endless
        convert.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        job = ConversionJob(ModelSpec("weights.safetensors"), "openvino")
        child.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline()) == {"progress": "begun"}
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        child.stdin.close()  # as it is when the process at its other end dies
        try:
            assert child.wait(20) == 1
        finally:
            child.kill()


def test_a_model_named_is_the_same_as_by_default(entry_of: Callable[..., str], tmp_path: Path, narrow: str) -> None:
    default = PACKAGED / "mae_tiny.safetensors"
    assert len({entry_of(), entry_of(model="mae_tiny"), entry_of(weights=str(default), model="mae_tiny")}) == 1
    # these weights are not the preset's: whoever reads them must see that
    with pytest.raises(WeightsError, match="is not mae_tiny"):
        build(EngineSettings(engine_cache=tmp_path / "cache", weights=narrow, model="mae_tiny", backend="torch"))


@pytest.mark.converts
def test_a_warm_start_imports_no_torch(engine_cache: Path) -> None:
    build(EngineSettings(engine_cache=engine_cache, backend="openvino"))
    script = """
        import sys
        from pathlib import Path
        from model.engines.build import build
        from model.engines.settings import EngineSettings

        engine = build(EngineSettings(engine_cache=Path(sys.argv[1])), print)
        assert engine.info.backend == "openvino"
        import service.api.app
        assert "torch" not in sys.modules
        assert sys.modules["openvino_telemetry"] is None, "or OpenVINO would tell its maker of every import"
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(engine_cache)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAE_")},
    )
    assert child.returncode == 0, child.stderr
    assert "converting" not in child.stdout and "measuring" not in child.stdout
