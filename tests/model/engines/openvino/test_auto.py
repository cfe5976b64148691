"""PRECISION=auto on OpenVINO: measured once, held to its bar, and int8 only where it was asked for."""

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from model.arrays import Bytes, Floats, Indices
from model.engines import context
from model.engines.base import Engine, EngineBuildError, Parity, Quantisation
from model.engines.build import build
from model.engines.openvino import build as module
from model.engines.openvino import engine as engine_module
from model.engines.openvino import entries
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.openvino.quantise import QUANTISATION
from model.engines.parity import ParityError
from model.engines.settings import EngineSettings
from tests.support.engines import with_changes

T = TypeVar("T")
GOOD = Parity(cosine=0.95, mean_cosine=0.998, psnr_db=40, loss_difference=0.01)


class Bench:
    """Stands in for the clock, the CPU, NNCF and the conversion; engines are real, but for what is wrong."""

    def __init__(self, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = {"fp32": 0.020, "bf16": 0.010, "int8": 0.005}
        self.bf16: str | None = "bf16"
        """What a wish for bf16 comes to on this CPU."""
        self.cpu = "this one"
        self.wrong: set[str] = set()
        """Precisions that compute something else."""
        self.figures = GOOD
        """Of int8 on photographs."""
        self.compiled: list[str] = []
        self.compiling = threading.local()
        """What this thread compiles: several precisions may be built at the same time."""
        self.measured: list[str] = []
        self._graphs = graphs
        self.readers: set[int] = set()
        """The threads that have read the files of an entry."""
        bench = self

        class Watched(OpenVINOEngine):
            def __init__(self, folder: Path, info: Any) -> None:
                bench.compiled.append(info.precision)
                bench.compiling.precision = info.precision
                super().__init__(folder, info)

            def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
                vectors = super().embed(lane, patches, visible_indices)
                return vectors[::-1] if self.info.precision in bench.wrong else vectors

        for owner, name, stand_in in (
            (module, "OpenVINOEngine", Watched),
            (module, "sample_precision", lambda precision: self.bf16),
            # Real engines compute in float32 under every name, so that a CPU without bf16 does for these tests.
            (engine_module, "PRECISION_HINTS", dict.fromkeys(("fp32", "bf16", "int8"), "f32")),
            (engine_module, "computed_precision", lambda graphs: self.compiling.precision),
            (module, "read_reference", self._noting_thread(module.read_reference)),
            (module, "read_model", self._noting_thread(module.read_model)),
            (module, "cpu_name", lambda: self.cpu),
            (module, "core_seconds", self._seconds),
            (entries, "require_nncf", lambda: "3.4"),
            (context, "convert_in_child", self._convert),
        ):
            monkeypatch.setattr(owner, name, stand_in)

    def forget(self) -> None:
        """What has been compiled and measured until now."""
        self.compiled.clear()
        self.measured.clear()

    def _noting_thread(self, read: Callable[[Path], T]) -> Callable[[Path], T]:
        def noted(folder: Path) -> T:
            self.readers.add(threading.get_ident())
            return read(folder)

        return noted

    def _seconds(self, engine: Engine) -> float:
        self.measured.append(engine.info.precision)
        return self.seconds[engine.info.precision]

    def _convert(self, job: Any, folder: Path, progress: Any, deadline: Any) -> None:
        shutil.copytree(self._graphs, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        if job.precision == "int8":
            said = Quantisation(photographs=20, held_out=10, digest="d", nncf="3.4", parity=self.figures)
            (folder / QUANTISATION).write_text(said.model_dump_json())


@pytest.fixture
def bench(narrow_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(narrow_graphs, monkeypatch)


@pytest.fixture
def spec(bench: Bench, narrow_weights: Path, tmp_path: Path) -> EngineSettings:
    return EngineSettings(
        engine_cache=tmp_path / "cache", weights=str(narrow_weights), backend="openvino", lanes=1, max_batch=4
    )


def served(spec: EngineSettings, calibrate: Path | None = None) -> str:
    return build(spec, calibrate=calibrate).info.precision


def test_one_thread_reads_the_entries_of_all_candidates(bench: Bench, spec: EngineSettings) -> None:
    """NumPy reads headers with `ast`, and two threads that do so at once made starts fail with a SystemError."""
    served(spec)
    assert set(bench.compiled) == {"fp32", "bf16"}
    assert bench.readers == {threading.get_ident()}


def test_the_fastest_serves_and_says_why(bench: Bench, spec: EngineSettings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        info = build(spec).info
    assert info.precision == "bf16"
    assert info.auto is not None
    assert info.auto.images_per_core_s == pytest.approx({"fp32": 50, "bf16": 100}) and info.auto.left_out == {}
    assert "PRECISION=auto serves bf16: images per core-second: fp32 50, bf16 100" in caplog.text


def test_a_small_gain_stays_with_float32(bench: Bench, spec: EngineSettings) -> None:
    bench.seconds["bf16"] = 0.0195
    assert served(spec) == "fp32"
    bench.forget()
    assert served(spec) == "fp32" and bench.compiled == ["fp32"]


def test_later_starts_neither_measure_nor_compile_the_others(bench: Bench, spec: EngineSettings) -> None:
    first = build(spec).info
    assert sorted(bench.compiled) == ["bf16", "fp32"] and bench.measured
    bench.forget()
    bench.seconds["bf16"] = 1.0  # nobody looks
    again = build(spec).info
    assert (again.precision, again.auto, again.entry) == ("bf16", first.auto, first.entry)
    assert (bench.compiled, bench.measured) == (["bf16"], [])


def test_a_precision_that_was_set_is_not_measured(bench: Bench, spec: EngineSettings) -> None:
    info = build(with_changes(spec, precision="bf16")).info
    assert (info.precision, info.auto, bench.measured) == ("bf16", None, [])
    assert [path.name for path in spec.engine_cache.glob("precision-*")] == []


@pytest.mark.parametrize("instead", ["emulated bf16", "fp32", None])
def test_bf16_is_for_cpus_that_have_it(bench: Bench, spec: EngineSettings, instead: str | None) -> None:
    bench.bf16 = instead
    info = build(spec).info
    assert (info.precision, bench.compiled, bench.measured) == ("fp32", ["fp32"], [])
    assert info.auto is not None and info.auto.images_per_core_s == {}


def test_what_fails_its_gate_is_left_out_by_name(
    bench: Bench, spec: EngineSettings, caplog: pytest.LogCaptureFixture
) -> None:
    bench.wrong = {"bf16"}
    info = build(spec).info
    assert (info.precision, bench.measured) == ("fp32", [])
    assert info.auto is not None and "centred cosine -" in info.auto.left_out["bf16"]
    assert "PRECISION=auto leaves out bf16: embeddings differ" in caplog.text and "0.999 is needed" in caplog.text
    bench.wrong = set()  # it is kept, too
    assert served(spec) == "fp32"


def test_float32_that_fails_its_gate_is_an_error(bench: Bench, spec: EngineSettings) -> None:
    bench.wrong = {"fp32"}
    with pytest.raises(ParityError, match="embeddings differ"):
        build(spec)
    assert [path.name for path in spec.engine_cache.glob("precision-*")] == []


def test_other_instructions_of_the_same_cpu_are_measured_anew(bench: Bench, spec: EngineSettings) -> None:
    """A virtual machine may hide some."""
    assert served(spec) == "bf16"
    bench.bf16 = "emulated bf16"
    assert served(spec) == "fp32"


def other_cpu(bench: Bench, spec: EngineSettings) -> EngineSettings:
    bench.cpu = "another"
    return spec


@pytest.mark.parametrize(
    "change",
    [
        other_cpu,
        lambda bench, spec: with_changes(spec, lanes=2),
        lambda bench, spec: with_changes(spec, preprocess={"resize": "squash"}),
        lambda bench, spec: with_changes(spec, parity_psnr_db=35.0),
    ],
)
def test_what_could_change_the_answer_is_measured_anew(
    bench: Bench, spec: EngineSettings, change: Callable[[Bench, EngineSettings], EngineSettings]
) -> None:
    build(spec)
    bench.forget()
    bench.seconds["bf16"] = 0.03
    assert served(change(bench, spec)) == "fp32" and bench.measured


# --- int8


def test_int8_that_was_asked_for_leads_later_servers_to_it(bench: Bench, spec: EngineSettings, crops: Path) -> None:
    assert served(spec) == "bf16"
    made = build(spec, calibrate=crops).info
    assert made.precision == "int8" and str(made.entry).startswith("openvino-int8-")
    assert made.auto is not None and set(made.auto.images_per_core_s) == {"fp32", "bf16", "int8"}
    bench.forget()
    found = build(spec).info
    assert (found.precision, found.entry, found.auto) == ("int8", made.entry, made.auto)
    assert found.quantisation is not None and found.quantisation.parity == GOOD
    assert (bench.compiled, bench.measured) == (["int8"], [])
    assert served(other_cpu(bench, spec)) == "int8" and set(bench.measured) == {"fp32", "bf16", "int8"}


def test_int8_made_for_a_trial_changes_nothing_for_auto(bench: Bench, spec: EngineSettings, crops: Path) -> None:
    assert served(with_changes(spec, precision="int8"), calibrate=crops) == "int8"
    assert served(spec) == "bf16"  # measured after the trial
    assert "int8" not in bench.measured
    others = shutil.copytree(crops, spec.engine_cache.parent / "others")
    shutil.copy(others / "1.jpg", others / "0.jpg")
    made = build(spec, calibrate=crops).info.entry
    build(with_changes(spec, precision="int8"), calibrate=others)
    assert build(spec).info.entry == made  # and a trial after it


def test_int8_that_is_no_faster_does_not_serve(bench: Bench, spec: EngineSettings, crops: Path) -> None:
    bench.seconds["int8"] = 0.0099
    assert served(spec, calibrate=crops) == "bf16"
    assert served(spec) == "bf16"


def test_int8_that_fails_on_held_out_photographs_is_left_out(bench: Bench, spec: EngineSettings, crops: Path) -> None:
    bench.figures = GOOD.model_copy(update={"mean_cosine": 0.9})
    info = build(spec, calibrate=crops).info
    assert info.precision == "bf16" and info.auto is not None
    assert "photographs held out" in info.auto.left_out["int8"] and "0.9000" in info.auto.left_out["int8"]
    assert build(spec).info.auto == info.auto


def test_int8_that_is_gone_is_not_replaced_in_silence(bench: Bench, spec: EngineSettings, crops: Path) -> None:
    made = build(spec, calibrate=crops).info
    (spec.engine_cache / str(made.entry) / "encoder.bin").write_bytes(b"damaged")
    with pytest.raises(EngineBuildError, match=r"no intact int8 engine .* mae compile --precision auto --calibrate"):
        build(spec)
    assert served(spec, calibrate=crops) == "int8"


def test_int8_whose_name_is_damaged_is_not_replaced_in_silence(bench: Bench, spec: EngineSettings, crops: Path) -> None:
    build(spec, calibrate=crops)
    [sidecar] = spec.engine_cache.glob("auto-int8-*.json")
    sidecar.write_text("{}")
    with pytest.raises(EngineBuildError, match=r"no intact int8 engine .* mae compile --precision auto --calibrate"):
        build(spec)
    assert served(spec, calibrate=crops) == "int8"


def test_photographs_are_for_openvino(spec: EngineSettings, crops: Path) -> None:
    with pytest.raises(EngineBuildError, match="int8 is for BACKEND=openvino; torch on cpu"):
        build(with_changes(spec, backend="torch"), calibrate=crops)
