"""`mae bench`."""

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from model.benchmark import run
from model.benchmark.weights import write_random_weights
from model.config import PRESETS
from service.settings import Settings
from tests.service.cli.conftest import Mae

QUICK = ("--seconds", "0.01")


def test_every_size_of_the_engine_that_would_serve(mae: Mae, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    result = mae("bench", *QUICK, "--lanes", "2", "--max-batch", "1", "--json", file)
    assert (result.code, result.err) == (0, "")
    [benchmark] = json.loads(file.read_text())["benchmarks"]
    assert (benchmark["engine"]["backend"], benchmark["engine"]["preferred_batch"], benchmark["random_weights"]) == (
        "openvino",
        1,
        False,
    )
    assert benchmark["engine"]["parity"]["cosine"] > 0.999999
    sizes = {(f["operation"], f["visible"], f["batch"], f["lanes"]) for f in benchmark["figures"]}
    assert sizes == {(o, k, b, n) for o in ("embed", "reconstruct") for k in (196, 49) for b in (1,) for n in (1, 2)}
    for figure in benchmark["figures"]:
        assert figure["engine"] == "openvino fp32" and figure["batches"] >= 5 * figure["lanes"]
        assert 0 < figure["p50_ms"] <= figure["p99_ms"] and figure["images_per_s"] > 0
        assert figure["floor_images_per_s"] is None
    rows = [line.split() for line in result.out.splitlines() if "openvino fp32 " in line and line.startswith("  ")]
    assert [(row[0], *map(int, row[1:4])) for row in rows] == [
        (f["operation"], f["visible"], f["batch"], f["lanes"]) for f in benchmark["figures"]
    ]
    shown = [float(row[6]) for row in rows]
    assert shown == pytest.approx([figure["images_per_s"] for figure in benchmark["figures"]], rel=0.01)


def test_beside_torch_and_the_roofline(mae: Mae, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its code generator, which takes a minute: the rest of it is real."""
    import torch

    real = torch.compile
    asked = []

    def compile_without_code(graph, **options):
        asked.append(options)
        return real(graph, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_without_code)
    monkeypatch.setattr("model.benchmark.roofline.PEAK_SECONDS", 0.05)
    result = mae("bench", *QUICK, "--lanes", "1", "--max-batch", "1", "--compare", "--json", "-")
    assert result.code == 0, result.err
    assert "roofline: images/s" in result.err and "TFLOP/s" in result.err
    [benchmark] = json.loads(result.out)["benchmarks"]
    assert len(asked) == 2 and all(options["fullgraph"] for options in asked)
    engines = [figure["engine"] for figure in benchmark["figures"]]
    assert engines == ["openvino fp32", "torch eager fp32"] * 4 + ["torch.compile fp32"] * 4
    assert benchmark["flops_per_image"]["embed 196"] == 2_506_982_400
    for figure in benchmark["figures"]:
        flops = benchmark["flops_per_image"][f"{figure['operation']} {figure['visible']}"]
        assert figure["floor_images_per_s"] <= benchmark["peak_flops_per_s"] / flops * (1 + 1e-9)
        assert figure["times_floor"] == pytest.approx(figure["floor_images_per_s"] / figure["images_per_s"])
        assert figure["times_floor"] > 0.3, "nothing beats the roofline by so much that it is none"


def test_a_preset_without_weights_gets_random_ones(mae: Mae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAE_WEIGHTS")
    for name in ("mae_tiny", "mae_small"):
        small = {"depth": 1, "decoder_depth": 1, "image_size": 64}
        monkeypatch.setitem(PRESETS, name, PRESETS[name].model_copy(update=small))
    write_random_weights("mae_tiny", tmp_path)
    for module in ("model.checkpoints.locate", "service.cli.commands.bench"):
        monkeypatch.setattr(f"{module}.PACKAGED", tmp_path)
    options = ("--backend", "torch", "--max-batch", "1", "--model", "mae_small", "--model", "mae_tiny")
    result = mae("bench", *QUICK, *options, "--json", "-")
    assert result.code == 0, result.err
    assert "mae_small (random weights" in result.err and "mae_tiny (random weights" not in result.err
    small_found, tiny = json.loads(result.out)["benchmarks"]
    assert (small_found["engine"]["model"], small_found["random_weights"]) == ("mae_small", True)
    assert (tiny["engine"]["model"], tiny["random_weights"]) == ("mae_tiny", False)
    assert {figure["visible"] for figure in small_found["figures"]} == {16, 4}


def test_rows_and_the_file_are_written_as_they_are_measured(
    mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the command, the rows so far are there."""
    file = tmp_path / "bench.json"
    honest, sizes = run.measure, []

    def measure(contenders, *arguments):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(contenders[0].sizes)
        return honest(contenders, *arguments)

    monkeypatch.setattr(run, "measure", measure)
    result = mae("bench", *QUICK, "--lanes", "1", "--max-batch", "2", "--json", file)
    assert result.code != 0
    [benchmark] = json.loads(file.read_text())["benchmarks"]
    assert [(f["operation"], f["visible"], f["batch"]) for f in benchmark["figures"]] == [
        ("embed", 196, 2),
        ("embed", 49, 2),
    ]
    rows = [line.split()[:3] for line in result.out.splitlines() if line.startswith("  embed")]
    assert rows == [["embed", "196", "2"], ["embed", "49", "2"]]
    assert result.out.count("images/s") == 1, "one header"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seconds", "0"), "--seconds must be more than 0"),
        (("--model", "mae_tiny", "--model", "mae_base"), "--weights belongs to one model"),
        (("--json", "nowhere/bench.json"), "there is no folder nowhere"),
        (("--backend", "nonsense"), "BACKEND"),
        (
            ("--parts", "engine,wheels"),
            "--parts takes engine, decode, answers, front, service, or all (given: 'wheels')",
        ),
        (("--connections", "4,0"), "--connections takes numbers from 1 to 900"),
        (("--connections", "many"), "--connections takes numbers from 1 to 900"),
        (("--load-seconds", "nan"), "--load-seconds must be more than 0"),
        (("--parts", "front", "--load-seconds", "60"), "--load-seconds must be at most 22.5"),
        (("--max-autotune",), "--max-autotune is a baseline: it needs --compare"),
        (("--time-limit", "0"), "--time-limit must be more than 0"),
        (("--parts", "decode", "--compare"), "--compare needs the part engine"),
        (("--parts", "decode", "--images", "."), "holds no image"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(
    mae: Mae, arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mae("bench", *arguments)
    assert result.code == 2 and sentence in result.err


def test_an_unknown_preset_is_refused(mae: Mae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAE_WEIGHTS")
    result = mae("bench", "--model", "mae_vast")
    assert result.code == 2 and "there is no preset 'mae_vast'" in result.err


def test_stages_without_the_engine_need_no_load(mae: Mae, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    result = mae("bench", *QUICK, "--parts", "decode,answers", "--images", squares, "--json", "-")
    assert result.code == 0, result.err
    [benchmark] = json.loads(result.out)["benchmarks"]
    assert benchmark["figures"] == [] and benchmark["service"]["front"] is None and benchmark["service"]["limits"] == []
    stages = {(cost["stage"], cost["what"]): cost for cost in benchmark["service"]["stages"]}
    decoded = stages["decode", "8 of squares"]
    assert decoded["kilobytes"] == pytest.approx(sum(file.stat().st_size for file in squares.iterdir()) / 8000)
    assert ("answer", "PNG, composite") in stages
    assert "8 of squares" in result.err and "no limit: " in result.err and "this takes between" in result.err


@pytest.mark.parametrize("parts", ["all", "front", "engine,service"])
def test_without_wrk_it_says_what_to_install(mae: Mae, monkeypatch: pytest.MonkeyPatch, parts: str) -> None:
    monkeypatch.setenv("PATH", "")
    result = mae("bench", "--parts", parts)
    assert result.code == 2 and "apt-get install wrk" in result.err


def test_the_whole_service_and_its_limit(mae: Mae, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts together; the load on both servers is replaced by fixed figures, since it has tests of its own."""
    from service.benchmark import run
    from tests.service.benchmark.test_limit import load_figures

    names = ("/embed", "/embed, multipart", "/reconstruct")
    measured: list[str] = []

    def measure_under_load(server, routes, connections, shares, window_s, progress, server_name):
        assert server.core_seconds() > 0 and [route.name for route in routes] == [*names]
        measured.append(server_name)
        speed, core_ms = (200, 10.0) if server_name == "front end alone" else (50, 35.0)
        return run.ServerFigures(figures=tuple(load_figures(name, speed, core_ms) for name in names))

    monkeypatch.setattr(run, "measure_under_load", measure_under_load)
    monkeypatch.setattr("service.benchmark.load.wrk_is_installed", lambda: True)
    options = ("--images", squares, "--max-batch", "1", "--lanes", "1")
    result = mae("bench", *QUICK, "--parts", "all", *options, "--json", "-")
    assert result.code == 0, result.err
    assert measured == ["front end alone", "service"]
    [benchmark] = json.loads(result.out)["benchmarks"]
    limits = {limit["route"]: limit for limit in benchmark["service"]["limits"]}
    assert tuple(limits) == names
    core_ms = {(figure["operation"], figure["visible"]): figure["core_ms"] for figure in benchmark["figures"]}
    assert limits["/embed"]["core_ms"] == pytest.approx(10 + core_ms["embed", 196])
    assert limits["/reconstruct"]["core_ms"] == pytest.approx(10 + core_ms["reconstruct", 49])
    assert "Where the time goes" in result.err and "measured / limit" in result.err


def test_a_server_that_fails_is_one_sentence(mae: Mae, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.benchmark import run
    from service.benchmark.processes import ServerProcess, serve_model

    monkeypatch.setattr("service.benchmark.load.wrk_is_installed", lambda: True)
    command = (sys.executable, "-c", "print('out of memory, say')")

    def serve(settings: Settings) -> AbstractContextManager[ServerProcess]:
        assert settings.header_timeout_s >= 100, "connections of random arrivals pause before their first request"
        return serve_model(settings, command)

    monkeypatch.setattr(run, "serve_model", serve)
    result = mae("bench", *QUICK, "--parts", "service", "--images", squares)
    assert result.code == 2 and "mae: the server has ended with 0: out of memory, say" in result.err
