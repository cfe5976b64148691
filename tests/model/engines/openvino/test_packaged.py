"""The graphs that come with the package: they are up to date, whole, and what a conversion makes."""

import errno
import hashlib
import json
import logging
import os
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.checkpoints.locate import PACKAGED, locate
from model.engines import context
from model.engines.base import EngineBuildError
from model.engines.build import build
from model.engines.child import convert_in_child
from model.engines.entry import read_model, read_reference
from model.engines.job import ConversionJob, ModelSpec
from model.engines.openvino import entries, quantise
from model.engines.openvino import packaged as module
from model.engines.openvino.calibration import PACKAGED_PHOTOGRAPHS, choose_photographs
from model.engines.openvino.pack import KINDS, describe_cpu, pack
from model.engines.openvino.packaged import DESCRIPTION, INT8, PackagedEntry, find_packaged
from model.engines.parity import TOLERANCES, measure_parity, require_tolerance
from model.engines.settings import EngineSettings
from tests.support.instructions import int8_saturates

MODELS = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
REMEDY = "run .venv/bin/python -m model.engines.openvino.pack"
GRAPHS = {"encoder.xml", "encoder.bin", "decoder.xml", "decoder.bin"}


def spec_of(name: str, **options: Any) -> tuple[ModelSpec, str]:
    source = locate(None, name)
    return ModelSpec(str(source.path), **options), source.digest


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_packaged_model_has_graphs_that_are_up_to_date(name: str, kind: str, tmp_path: Path) -> None:
    entry = find_packaged(kind, *spec_of(name))
    assert entry is not None, f"weights, code or OpenVINO have changed: {REMEDY}"
    assert entry.unpack(locate(None, name).path, tmp_path), REMEDY
    assert {path.name for path in tmp_path.iterdir()} >= {*GRAPHS, "model.json", "reference.npz"}
    assert kind != INT8 or entry.description.made_from["nncf"] == version("nncf"), f"NNCF has changed: {REMEDY}"


def test_no_graphs_of_other_models_are_left() -> None:
    assert sorted(path.parent.parent.name for path in PACKAGED.glob(f"*/*/{DESCRIPTION}")) == sorted(
        name for name in MODELS for _ in KINDS
    )


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    entry = find_packaged("openvino", *spec_of("mae_tiny"))
    assert entry is not None
    assert entry.unpack(locate(None, None).path, folder)
    return folder


@pytest.mark.converts
def test_a_conversion_makes_the_same_bits(unpacked: Path, tmp_path: Path) -> None:
    # OpenVINO numbers the nodes of all graphs of a process, so the bits are those of a process with one conversion.
    convert_in_child(ConversionJob(spec_of("mae_tiny")[0], "openvino"), tmp_path, print)
    fresh, shipped = digests(tmp_path), digests(unpacked)
    assert fresh.keys() == shipped.keys()
    assert {name for name in fresh if fresh[name] != shipped[name]} <= {"reference.npz"}
    # The reference is computed by this CPU's own kernels, so its last bits may differ.
    model = read_model(unpacked)
    parity = measure_parity(read_reference(tmp_path), read_reference(unpacked), model.config)
    require_tolerance(parity, TOLERANCES["fp32"])


@pytest.mark.slow
def test_a_first_start_of_the_packaged_model_converts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unpacked: Path
) -> None:
    def convert(*job: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(context, "convert_in_child", convert)
    steps: list[str] = []
    settings = EngineSettings(engine_cache=tmp_path, backend="openvino", precision="fp32", max_batch=1, lanes=1)
    info = build(settings, steps.append).info
    assert "making the engine of mae_tiny from the graphs in the package" in steps
    assert info.parity is not None and info.parity.cosine >= TOLERANCES["fp32"].cosine
    assert info.entry is not None
    entry = digests(tmp_path / info.entry)
    assert {name: entry[name] for name in digests(unpacked)} == digests(unpacked)
    steps.clear()
    build(settings, steps.append)
    assert "making the engine of mae_tiny from the graphs in the package" not in steps  # the cache has them now


def test_a_full_disk_is_named_and_nothing_is_converted_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*job: object) -> None:
        raise AssertionError("converted")

    def write_bytes(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(context, "convert_in_child", convert)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    settings = EngineSettings(engine_cache=tmp_path, backend="openvino", precision="fp32", max_batch=1, lanes=1)
    with pytest.raises(EngineBuildError, match=rf"{tmp_path} cannot be written \(No space left on device\)"):
        build(settings)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


# --- when they are not taken


@pytest.mark.parametrize(
    ("options", "named"),
    [({"image_size": 192}, "image_size (None, and here 192)"), ({"norm_pix_loss": True}, "norm_pix_loss")],
)
def test_other_options_are_named(options: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert find_packaged("openvino", *spec_of("mae_tiny", **options)) is None
    assert f"they were made with another {named}" in caplog.text


@pytest.mark.parametrize(("what", "named"), [("version", "openvino"), ("code_digest", "code")])
def test_other_code_and_another_openvino_are_named(
    what: str, named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, what, lambda name: "another")
    with caplog.at_level(logging.INFO):
        assert find_packaged("openvino", *spec_of("mae_tiny")) is None
    assert f"they were made with another {named} (" in caplog.text and "here another" in caplog.text


def test_other_weights_have_none_and_nothing_is_said(probe: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert find_packaged("openvino", ModelSpec(str(probe)), locate(str(probe), None).digest) is None
    assert caplog.text == ""


# --- damaged packages


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder of packaged weights of this test's own."""
    shutil.copytree(PACKAGED / "mae_tiny", tmp_path / "packaged" / "mae_tiny")
    return tmp_path / "packaged"


def find(copied: Path) -> PackagedEntry | None:
    return find_packaged("openvino", *spec_of("mae_tiny"), copied)


@pytest.mark.parametrize("name", ["encoder.bin", "decoder.xml", "reference.npz"])
def test_a_file_that_is_damaged_is_not_unpacked(copied: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = copied / "mae_tiny" / "openvino" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (folder := copied / "entry").mkdir()
    entry = find(copied)
    assert entry is not None and not entry.unpack(locate(None, None).path, folder)
    assert list(folder.iterdir()) == [] and f"{name} is not what was packaged" in caplog.text


def test_a_file_that_is_missing_is_told(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copied / "mae_tiny" / "openvino" / "model.json").unlink()
    entry = find(copied)
    assert entry is not None and not entry.unpack(locate(None, None).path, copied)
    assert "model.json" in caplog.text


@pytest.mark.parametrize("damage", ["", "{}", "[]", "\x00"])
def test_a_description_that_is_damaged_is_told(copied: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    (copied / "mae_tiny" / "openvino" / DESCRIPTION).write_text(damage)
    assert find(copied) is None
    assert "cannot be used" in caplog.text


# --- packing


def test_tensors_of_the_weights_are_left_out_and_put_back(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    tensors = {name: draw.standard_normal((9, 9)).astype(np.float16) for name in ("a", "b")}
    tensors["small"] = np.ones(3, np.float16)
    weights = tmp_path / "weights.safetensors"
    save_file(tensors, weights)
    other = draw.bytes(500)
    # In another order than in the file, one of them twice, with bytes before, between and after them.
    pieces = [other[:7], tensors["b"], other[7:20], tensors["a"], tensors["b"], tensors["small"], other[20:]]
    parts = [piece if isinstance(piece, bytes) else piece.astype("<f4").tobytes() for piece in pieces]
    offsets = np.cumsum([0, *map(len, parts)])
    layers = "".join(
        f'<layer type="Const"><data offset="{offset}" size="{len(part)}" /></layer>'
        for offset, part in zip(offsets, parts, strict=False)
    )
    (entry := tmp_path / "entry").mkdir()
    (entry / "encoder.xml").write_text(f'<net><layer type="Result" />{layers}</net>')
    (entry / "encoder.bin").write_bytes(b"".join(parts))
    (entry / "model.json").write_text("{}")
    folder = pack(entry, weights, tmp_path / "packed", {"path": "weights"})
    left = [part for part in parts if part not in (parts[1], parts[3])]
    assert (folder / "encoder.bin").read_bytes() == b"".join(left)
    description = json.loads((folder / DESCRIPTION).read_text())
    assert [name for _, name in description["tensors"]["encoder.bin"]] == ["b", "a", "b"]
    (again := tmp_path / "again").mkdir()
    packed = PackagedEntry(folder, module.Description(**description))
    assert packed.unpack(weights, again) and digests(again) == digests(entry)


def test_files_of_the_float32_graphs_are_not_packed_again(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"a": np.ones(3, np.float16)}, weights)
    for folder, graph in (("first", "float32"), ("second", "int8")):
        (entry := tmp_path / folder).mkdir()
        (entry / "encoder.xml").write_text(f"<{graph} />")
        (entry / "reference.npz").write_bytes(b"the same")
    first = pack(tmp_path / "first", weights, tmp_path / "packed" / module.FLOAT32, {"path": "weights"})
    second = pack(tmp_path / "second", weights, tmp_path / "packed" / INT8, {"path": "weights"}, first)
    assert {path.name for path in second.iterdir()} == {"encoder.xml", DESCRIPTION}
    description = module.Description.model_validate_json((second / DESCRIPTION).read_text())
    (again := tmp_path / "again").mkdir()
    assert PackagedEntry(second, description).unpack(weights, again)
    assert digests(again) == digests(tmp_path / "second")
    (first / "reference.npz").write_bytes(b"another")
    assert not PackagedEntry(second, description).unpack(weights, again)


# --- int8


@pytest.fixture
def without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*job: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(context, "convert_in_child", convert)
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def unpacked_int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackagedEntry, Path]:
    folder = tmp_path_factory.mktemp("unpacked-int8")
    entry = find_packaged(INT8, *spec_of("mae_tiny"))
    assert entry is not None, REMEDY
    assert entry.unpack(locate(None, None).path, folder)
    return entry, folder


@pytest.mark.slow
@pytest.mark.usefixtures("without_nncf")
@pytest.mark.skipif(int8_saturates(os.environ.get("ONEDNN_MAX_CPU_ISA")), reason="int8 needs VNNI")
def test_int8_of_the_packaged_model_needs_neither_nncf_nor_photographs_of_the_operator(tmp_path: Path) -> None:
    """Both checks are passed with room: on the drawn images and, when it was made, on photographs held out."""
    settings = EngineSettings(engine_cache=tmp_path, backend="openvino", precision="int8", max_batch=1, lanes=1)
    info = build(settings).info
    assert info.computes == "int8"
    assert info.parity is not None and info.parity.mean_cosine is not None and info.parity.mean_cosine > 0.994
    assert info.quantisation is not None
    assert info.quantisation.digest == choose_photographs(PACKAGED_PHOTOGRAPHS).digest
    require_tolerance(info.quantisation.parity, TOLERANCES["int8"])
    assert build(settings).info.entry == info.entry


@pytest.mark.usefixtures("without_nncf")
def test_int8_of_other_options_names_nncf(tmp_path: Path) -> None:
    settings = EngineSettings(engine_cache=tmp_path, backend="openvino", precision="int8", image_size=192)
    with pytest.raises(EngineBuildError, match=r"pip install 'nncf>=3.4'"):
        build(settings)


@pytest.mark.usefixtures("without_nncf")
def test_damaged_int8_graphs_of_the_package_are_not_served(
    tmp_path: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "mae_tiny" / INT8 / "encoder.bin").write_bytes(b"damaged")
    monkeypatch.setattr(entries, "find_packaged", partial(find_packaged, packaged=copied))
    with pytest.raises(EngineBuildError, match=r"pip install 'nncf>=3.4'"):
        build(EngineSettings(engine_cache=tmp_path / "cache", backend="openvino", precision="int8"))


def test_another_calibration_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = shutil.copytree(PACKAGED_PHOTOGRAPHS, tmp_path / "others")
    next(iter(others.iterdir())).unlink()
    monkeypatch.setattr(module, "PACKAGED_PHOTOGRAPHS", others)
    with caplog.at_level(logging.INFO):
        assert find_packaged(INT8, *spec_of("mae_tiny")) is None
    assert "they were made with another calibration (" in caplog.text


@pytest.mark.converts
def test_a_calibration_on_the_same_kind_of_cpu_makes_the_same_bits(
    unpacked_int8: tuple[PackagedEntry, Path], tmp_path: Path
) -> None:
    """NNCF sees the activations that this CPU's kernels compute, so on another kind the last bits may differ."""
    pytest.importorskip("nncf")
    entry, shipped = unpacked_int8
    if entry.description.made_from["cpu"] != describe_cpu() or "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("the packaged graphs were calibrated on another kind of CPU")
    photographs = choose_photographs(PACKAGED_PHOTOGRAPHS)
    convert_in_child(
        ConversionJob(spec_of("mae_tiny")[0], "openvino", "int8", photographs=photographs), tmp_path, print
    )
    assert {name: digest for name, digest in digests(tmp_path).items() if name in GRAPHS} == {
        name: digest for name, digest in digests(shipped).items() if name in GRAPHS
    }
