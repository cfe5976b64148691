"""From settings to an engine: what is chosen, what is made, what is refused."""

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import Preprocessing
from model.engines.base import Engine, EngineBuildError
from model.engines.build import build
from model.engines.cpu import available_cpus
from model.engines.fixed_images import fixed_patches
from model.engines.settings import EngineSettings
from model.nn.vit import MaskedAutoencoder
from tests.support.conversion import conversions_in_process
from tests.support.engines import NARROW


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
    assert not info.joined, "the joined lane is made once the engine is ready"
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
    assert "converting" not in child.stdout and "measuring which" not in child.stdout


def test_torch_measures_no_batches(narrow: str, tmp_path: Path) -> None:
    """On a GPU a batch takes hardly longer than an image, so it is as large as it can be."""
    served = build(EngineSettings(engine_cache=tmp_path, weights=narrow, backend="torch"))
    assert served.measurement is None and served.info.batch_curves is None and not served.info.joined
