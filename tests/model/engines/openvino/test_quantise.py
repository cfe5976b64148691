"""int8: made from photographs, found without them, and held to a bar on photographs that played no part in it."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.checkpoints import checkpoint
from model.engines import context
from model.engines.base import EngineBuildError, Parity, Quantisation
from model.engines.build import build
from model.engines.fixed_images import fixed_patches
from model.engines.job import MIN_PHOTOGRAPHS
from model.engines.openvino import entries
from model.engines.openvino.calibration import MAX_PHOTOGRAPHS, PACKAGED_PHOTOGRAPHS, choose_photographs
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.openvino.quantise import QUANTISATION, calibration_part, held_out_part, require_nncf
from model.engines.parity import ParityError
from model.engines.settings import EngineSettings
from tests.support.engines import with_changes
from tests.support.instructions import int8_saturates

GOOD = Parity(cosine=0.95, mean_cosine=0.998, psnr_db=40, loss_difference=0.01)


@pytest.fixture
def converted(narrow_graphs: Path, tmp_path: Path) -> Path:
    """Graphs of a small model, as a quantisation without loss."""
    return shutil.copytree(narrow_graphs, tmp_path / "graphs")


@pytest.fixture
def spec(tmp_path: Path, narrow_weights: Path, converted: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSettings:
    """NNCF and the child process are left out; whatever is in `converted` is what they make."""

    def convert(job: Any, folder: Path, progress: Any, deadline: Any) -> None:
        assert job.precision == "int8"
        progress(f"calibrating on {len(job.photographs.paths)} photographs of {Path(job.photographs.paths[0]).parent}")
        shutil.copytree(converted, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        if not (folder / QUANTISATION).exists():
            write_figures(folder, GOOD)

    monkeypatch.setattr(context, "convert_in_child", convert)
    monkeypatch.setattr(entries, "require_nncf", lambda: "3.4")
    made = EngineSettings(
        engine_cache=tmp_path / "cache", weights=str(narrow_weights), backend="openvino", lanes=1, max_batch=4
    )
    return with_changes(made, precision="int8")


def write_figures(folder: Path, figures: Parity) -> None:
    said = Quantisation(photographs=20, held_out=10, digest="d", nncf="3.4", parity=figures)
    (folder / QUANTISATION).write_text(said.model_dump_json())


def test_a_server_without_the_photographs_finds_the_engine(spec: EngineSettings, crops: Path) -> None:
    made = build(spec, calibrate=crops)
    found = build(spec)
    assert found.info.entry == made.info.entry and str(made.info.entry).startswith("openvino-int8-")
    assert found.info.precision == "int8"
    assert found.info.quantisation is not None and found.info.quantisation.parity == GOOD
    assert build(with_changes(spec, preprocess={"resize": "squash"})).info.entry != made.info.entry


def test_an_operators_engine_that_is_damaged_is_not_replaced_by_another(spec: EngineSettings, crops: Path) -> None:
    """One from the packaged photographs would answer vectors of another space."""
    made = build(spec, calibrate=crops)
    (spec.engine_cache / str(made.info.entry) / "encoder.bin").write_bytes(b"damaged")
    with pytest.raises(EngineBuildError, match=r"no intact int8 engine .*mae compile --precision int8 --calibrate FO"):
        build(spec)


def test_an_operators_engine_whose_name_is_damaged_is_not_replaced_by_another(
    spec: EngineSettings, crops: Path
) -> None:
    build(spec, calibrate=crops)
    [sidecar] = spec.engine_cache.glob("int8-*.json")
    sidecar.write_text("{")
    with pytest.raises(EngineBuildError, match=r"no intact int8 engine .*mae compile --precision int8 --calibrate FO"):
        build(spec)


def test_without_an_operators_photographs_the_packaged_ones_calibrate(spec: EngineSettings, crops: Path) -> None:
    steps: list[str] = []
    packaged = build(spec, steps.append).info.entry
    announced, calibrated = (
        next(number for number, step in enumerate(steps) if text in step)
        for text in ("packaged photographs", f"photographs of {PACKAGED_PHOTOGRAPHS}")
    )
    assert announced < calibrated
    steps.clear()
    assert build(spec, steps.append).info.entry == packaged
    assert not any("photographs" in step for step in steps)  # it is in the cache
    own = build(spec, calibrate=crops).info.entry
    assert own != packaged and build(spec).info.entry == own


def test_a_server_without_nncf_finds_what_the_packaged_photographs_made(
    spec: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(spec).info.entry
    monkeypatch.setattr(entries, "require_nncf", require_nncf)
    monkeypatch.setattr("model.engines.openvino.quantise.find_spec", lambda name: None)
    assert build(spec).info.entry == made
    (spec.engine_cache / str(made) / "encoder.bin").write_bytes(b"damaged")
    with pytest.raises(EngineBuildError, match=r"pip install 'nncf>=3.4'"):
        build(spec)


def test_the_photographs_calibrated_on_last_are_those_that_serve(
    spec: EngineSettings, crops: Path, tmp_path: Path
) -> None:
    first = build(spec, calibrate=crops).info.entry
    others = shutil.copytree(crops, tmp_path / "others")
    shutil.copy(others / "1.jpg", others / "0.jpg")
    second = build(spec, calibrate=others).info.entry
    assert first != second
    assert build(spec).info.entry == second


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"mean_cosine": 0.985}, r"embeddings of photographs held out .* mean centred cosine 0\.985.* 0\.99 is needed"),
        ({"mean_cosine": float("nan")}, "embeddings of photographs held out"),
        ({"psnr_db": 29.0}, "reconstructions of photographs held out"),
        ({"loss_difference": 0.06}, "loss of photographs held out"),
    ],
)
def test_what_fails_on_held_out_photographs_does_not_serve(
    spec: EngineSettings, crops: Path, converted: Path, figures: dict[str, float], message: str
) -> None:
    write_figures(converted, GOOD.model_copy(update=figures))
    with pytest.raises(ParityError, match=message):
        build(spec, calibrate=crops)
    write_figures(converted, GOOD)
    packaged = build(spec).info.quantisation  # nothing leads to what has failed
    assert packaged is not None and packaged.parity == GOOD


def test_a_graph_that_was_quantised_wrongly_does_not_serve(
    spec: EngineSettings, crops: Path, converted: Path, narrow_weights: Path
) -> None:
    """Its figures may say what they like: the fixed images are asked at every start."""
    path = converted / "encoder.bin"
    bias = checkpoint.load(narrow_weights).tensors["blocks.1.mlp.fc1.bias"].numpy()
    content = path.read_bytes()
    assert content.count(bias.tobytes()) == 1
    path.write_bytes(content.replace(bias.tobytes(), (bias + 1).tobytes()))
    with pytest.raises(ParityError, match="embeddings differ from eager float32: mean centred cosine"):
        build(spec, calibrate=crops)


def test_the_operator_sets_the_bar(spec: EngineSettings, crops: Path) -> None:
    with pytest.raises(ParityError, match=r"0\.9999 is needed"):
        build(with_changes(spec, parity_cosine=0.9999), calibrate=crops)


def test_int8_is_for_openvino(spec: EngineSettings) -> None:
    with pytest.raises(EngineBuildError, match="PRECISION=int8 is for BACKEND=openvino; torch on cpu has fp32"):
        build(with_changes(spec, backend="torch"))


def test_photographs_are_for_int8(spec: EngineSettings, crops: Path) -> None:
    with pytest.raises(EngineBuildError, match="for PRECISION=int8 or auto"):
        build(with_changes(spec, precision="fp32"), calibrate=crops)


def test_a_missing_nncf_is_named(spec: EngineSettings, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("model.engines.openvino.quantise.find_spec", lambda name: None)
    with pytest.raises(EngineBuildError, match=r"pip install 'nncf>=3.4'"):
        build(spec, calibrate=crops)


def test_too_few_photographs_or_none(tmp_path: Path, crops: Path) -> None:
    (tmp_path / "few").mkdir()
    for number in range(MIN_PHOTOGRAPHS - 1):
        shutil.copy(crops / f"{number}.jpg", tmp_path / "few")
    with pytest.raises(EngineBuildError, match="there are 23"):
        choose_photographs(tmp_path / "few")
    with pytest.raises(EngineBuildError, match="No such file"):
        choose_photographs(tmp_path / "none")
    (tmp_path / "p.pack").touch()
    with pytest.raises(EngineBuildError, match="is a pack, and a folder is needed"):
        choose_photographs(tmp_path / "p.pack")


def test_the_same_folder_gives_the_same_photographs(tmp_path: Path) -> None:
    for number in range(MAX_PHOTOGRAPHS + 50):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number % 256]))
    first = choose_photographs(tmp_path)
    assert len(first.paths) == MAX_PHOTOGRAPHS == len(set(first.paths))
    assert choose_photographs(tmp_path) == first
    Path(first.paths[3]).write_bytes(b"another")
    assert choose_photographs(tmp_path).digest != first.digest


def test_nothing_is_both_calibrated_and_measured_on() -> None:
    photographs = np.arange(30).reshape(30, 1, 1).astype(np.uint8)
    ours, others = (set(part.ravel().tolist()) for part in (calibration_part(photographs), held_out_part(photographs)))
    assert ours | others == set(range(30)) and not ours & others
    assert len(others) == 10


def test_the_packaged_photographs_are_few_small_and_attributed() -> None:
    """Bounds of the package, licences that allow it, and no metadata: a camera's may say where and by whom."""
    paths = sorted(PACKAGED_PHOTOGRAPHS.iterdir())
    assert MIN_PHOTOGRAPHS <= len(paths) <= 128
    assert sum(path.stat().st_size for path in paths) <= 1_500_000
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (224, 224)), path.name
            assert all(key.startswith(("jfif", "progress")) for key in image.info), path.name
    with (PACKAGED_PHOTOGRAPHS.parent / "attribution.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [path.name for path in paths]
    assert {row["licence"] for row in rows} == {"MIT", "CC BY 4.0"}
    assert all(row["source"] and row["authors"] and "shrunk to 224 px" in row["changes"] for row in rows)


@pytest.mark.converts
def test_a_small_model_is_really_quantised(tmp_path: Path, narrow_weights: Path, crops: Path) -> None:
    """With NNCF, in a child process: eight bits in the graph, the model's numbers out of it."""
    pytest.importorskip("nncf")
    made = EngineSettings(engine_cache=tmp_path, weights=str(narrow_weights), backend="openvino", lanes=1, max_batch=2)
    # Twenty photographs are few: what was drawn lies outside their ranges.
    spec = with_changes(made, precision="int8", parity_cosine=0.9, parity_psnr_db=20, parity_loss=0.5)
    if int8_saturates(os.environ.get("ONEDNN_MAX_CPU_ISA")):
        with pytest.raises(ParityError, match="photographs held out"):  # numbers that overflowed are never served
            build(spec, calibrate=crops)
        return
    info = build(spec, calibrate=crops).info
    found = info.quantisation
    assert found is not None and (found.photographs, found.held_out) == (20, 10)
    assert found.parity.mean_cosine is not None and 0.97 < found.parity.mean_cosine < 0.99999
    graph = (tmp_path / str(info.entry) / "encoder.xml").read_text()
    assert graph.count('type="FakeQuantize"') > 12 and 'element_type="i8"' in graph
    engine = build(with_changes(spec, lanes=2)).engine
    assert isinstance(engine, OpenVINOEngine) and engine.info.entry == info.entry
    engine.join_lanes()
    images = fixed_patches(info.config)
    everywhere = np.tile(np.arange(16, dtype=np.int32), (8, 1))
    for lane in (0, 2):  # 2 is the joined one
        alone = np.concatenate([engine.embed(lane, images[n : n + 1], everywhere[:1]) for n in range(8)])
        assert np.array_equal(alone, engine.embed(0, images, everywhere))
    for visible in (1, 4):
        some = everywhere[:, :visible]
        for ours, joined in zip(engine.reconstruct(0, images, some), engine.reconstruct(2, images, some), strict=True):
            assert np.array_equal(ours, joined)
    engine.drop_joined_lane()
    with pytest.raises(IndexError):
        engine.embed(2, images, everywhere)
    json.dumps(info.model_dump())  # as /info gives it
