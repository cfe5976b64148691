"""The digest of the code that makes cache entries: it covers the modules that a conversion imports, and no others."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

import model
from model.engines.fingerprint import ROOT, SOURCES, code_digest, source_of
from tests.support.engines import write_narrow

CONVERT = """
    import importlib.metadata, json, os, sys, types
    from functools import partial
    from pathlib import Path

    weights, folder, *photographs = sys.argv[1:]
    sys.modules["openvino_telemetry"] = None
    # Once for all kinds, which run in forks: only modules of ours count.
    import openvino, safetensors.torch, torch, torch._dynamo, torch.distributed.tensor, torch.export
    # Stand-ins for packages that may be missing: they return graphs as they are, and import nothing of ours.
    ranges = types.SimpleNamespace(RangeEstimatorParametersSet=types.SimpleNamespace(MINMAX="least and greatest"))
    sys.modules["nncf"] = types.SimpleNamespace(
        quantize=lambda graph, *data, **options: graph,
        Dataset=list,
        ModelType=types.SimpleNamespace(TRANSFORMER="transformer"),
        AdvancedQuantizationParameters=dict,
        AdvancedSmoothQuantParameters=dict,
        quantization=types.SimpleNamespace(range_estimator=ranges),
        set_log_level=lambda level: None,
    )
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "1" if name == "nncf" else version(name)
    sys.modules["torch_tensorrt"] = types.SimpleNamespace(
        Input=dict,
        dynamo=types.SimpleNamespace(convert_exported_program_to_serialized_trt_engine=lambda *of, **how: b"engine"),
    )


    def modules_of(kind):
        from model.engines.convert import convert
        from model.engines.job import Calibration, ConversionJob, ModelSpec

        model, calibration = ModelSpec(weights), Calibration(tuple(photographs), "digest")
        jobs = {
            "openvino": ConversionJob(model, "openvino"),
            "openvino-int8": ConversionJob(model, "openvino", "int8", photographs=calibration),
            "tensorrt": ConversionJob(model, "tensorrt", "fp16", 4),
            "torch": ConversionJob(model, "torch", "fp16", 4),
        }
        if kind == "tensorrt":
            from model.engines.cuda import tensorrt_build

            tensorrt_build.build_engines = partial(tensorrt_build.build_engines, device="cpu")
        if kind == "torch":  # without the compiler and the GPU, of which nothing is ours
            from model.engines.cuda import torch_compile

            torch_compile.DeviceEngine = lambda graphs, info, cuda_graphs: None
            torch_compile.write_compiled_graphs = partial(torch_compile.write_compiled_graphs, device="cpu")
            torch.compiler.save_cache_artifacts = lambda: (b"compiled", None)
        if kind != "openvino":  # which is converted first; here the graphs run, and are not exported once more
            torch.export.export = lambda graph, example, **how: graph(*example) and graph
        if kind == "openvino-int8":
            graphs = iter(("encoder.xml", "decoder.xml"))
            openvino.convert_model = lambda graph: openvino.Core().read_model(Path(folder) / "openvino" / next(graphs))
        output = Path(folder) / kind
        output.mkdir()
        convert(jobs[kind], output, lambda text: None)
        return sorted(name for name in sys.modules if name.partition(".")[0] in ("model", "service"))

    for kind in ("openvino", "openvino-int8", "tensorrt", "torch"):
        child = os.fork()
        if child == 0:
            (Path(folder) / f"{kind}.json").write_text(json.dumps(modules_of(kind)))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, kind
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one block, which is exported sooner: what is imported does not depend on the number."""
    return write_narrow(tmp_path_factory.mktemp("shallow"), depth=1)


@pytest.fixture(scope="module")
def imported(weights: Path, crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """The modules of ours that a conversion of each kind has imported in the end."""
    folder = tmp_path_factory.mktemp("conversions")
    child = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(CONVERT), weights, folder, *sorted(crops.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.converts
@pytest.mark.parametrize("kind", SOURCES)
def test_the_list_is_what_a_conversion_imports(kind: str, imported: Mapping[str, list[str]]) -> None:
    assert imported[kind] == sorted(SOURCES[kind])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with a copy of the package's source, of this test's own: tests change it, and run in any order."""
    shutil.copytree(
        Path(model.__file__).parent, tmp_path / "model", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    return tmp_path


@pytest.mark.parametrize("kind", SOURCES)
def test_an_edit_of_any_module_in_the_list_makes_another_entry(kind: str, copied: Path) -> None:
    before = code_digest(kind, copied)
    assert before == code_digest(kind)
    digests = {before}
    for name in SOURCES[kind]:
        path = source_of(name, copied)
        content = path.read_text()
        path.write_text(content + "\n")
        digests.add(code_digest(kind, copied))
        path.write_text(content)
    assert len(digests) == 1 + len(SOURCES[kind])
    assert code_digest(kind, copied) == before


@pytest.mark.parametrize("kind", SOURCES)
def test_an_edit_of_any_other_module_does_not(kind: str, copied: Path) -> None:
    before = code_digest(kind, copied)
    inside = {source_of(name, copied) for name in SOURCES[kind]}
    outside = set((copied / "model").rglob("*.py")) - inside
    names = {path.relative_to(copied / "model").as_posix() for path in outside}
    assert {
        "images/png.py",
        "images/render.py",
        "images/folders.py",
        "training/pretrain.py",
        "engines/build.py",
    } <= names
    for path in outside:
        path.write_text(path.read_text() + "\n")
    assert code_digest(kind, copied) == before


def test_int8_graphs_depend_on_more_than_float32_ones(copied: Path) -> None:
    path = copied / "model" / "engines" / "openvino" / "quantise.py"
    before = {kind: code_digest(kind, copied) for kind in SOURCES}
    path.write_text(path.read_text() + "\n")
    assert {kind for kind in SOURCES if code_digest(kind, copied) != before[kind]} == {"openvino-int8"}


def test_a_module_that_was_moved_is_missed(copied: Path) -> None:
    path = source_of("model.nn.vit", copied)
    moved = path.rename(path.with_name("elsewhere.py"))
    with pytest.raises(FileNotFoundError, match=r"vit\.py"):
        code_digest("openvino", copied)
    moved.rename(path)


def test_every_module_of_the_lists_exists_once() -> None:
    for names in SOURCES.values():
        assert len(set(names)) == len(names)
        assert all(source_of(name, ROOT).is_file() for name in names)
