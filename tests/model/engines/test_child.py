"""Conversions in a process of their own: what the child makes, how it may end, and what is told of that."""

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model.checkpoints.errors import WeightsError
from model.engines.base import EngineBuildError, EngineError
from model.engines.build import build
from model.engines.child import convert_in_child
from model.engines.fixed_images import fixed_patches
from model.engines.job import ConversionJob, ModelSpec
from model.engines.settings import EngineSettings
from tests.support.engines import with_changes, write_fresh


@pytest.fixture(scope="module")
def encoder_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_fresh(tmp_path_factory.mktemp("weights") / "encoder.safetensors", decoder_depth=0))


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
            assert child.wait(60) == 1
        finally:
            child.kill()
