"""`mae serve` that cannot start: one line and exit code 2, before a model is loaded or a process started."""

import os
import socket
from pathlib import Path

import pytest

from service import serving
from service.lifecycle import served_index
from tests.service.cli.conftest import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MAE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_port_in_use(capfd: Capture, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(capfd, "serve", "--host", "127.0.0.1", "--port", port, "--http-workers", workers)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"mae: PORT: cannot listen on http://127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_address_of_another_machine(capfd: Capture, workers: str) -> None:
    result = run(capfd, "serve", "--host", "192.0.2.1", "--port", "0", "--http-workers", workers)
    assert result.code == 2
    assert result.err == "mae: HOST: cannot listen on http://192.0.2.1:0: Cannot assign requested address\n"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The settings of every server that would have started."""
    started: list[object] = []
    monkeypatch.setattr(serving, "run", lambda settings: started.append(settings) or 0)
    return started


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--weights", "nowhere.pth"), "nowhere.pth does not exist"),
        (("--model", "mae_giant"), "there is no preset 'mae_giant'"),
        (("--model", "mae_base"), "no weights of mae_base are packaged"),
        (("--image-size", "100"), "IMAGE_SIZE: image_size 100 is not a multiple of patch_size 16"),
        (("--preprocess", '{"filter": "sharp"}'), "PREPROCESS.filter: Input should be"),
        (("--preprocess", '{"crop": 0.9}'), "PREPROCESS.crop: Extra inputs are not permitted"),
        (("--backend", "torch", "--precision", "int8"), "PRECISION=int8 is for BACKEND=openvino"),
        (("--backend", "abacus"), "BACKEND: Input should be"),
        (("--port", "99999"), "PORT: Input should be less than or equal to 65535"),
        (("--index", "nowhere.lance"), "INDEX: there is no index nowhere.lance: mae index makes one"),
        (("--index", os.path.dirname(__file__)), "commands is no index: the name of one ends in .lance"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: tuple[str, ...], sentence: str, started: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(capfd, "serve", *options)
    assert (result.code, result.out, started) == (2, "", [])
    assert sentence in result.err and result.err.startswith("mae: ") and result.err.count("\n") == 1


def test_an_index_without_lancedb_is_one_line(
    started: list[object], capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "photos.lance").mkdir()
    monkeypatch.setattr(served_index, "find_spec", lambda name: None)
    result = run(capfd, "serve", "--index", str(tmp_path / "photos.lance"))
    assert (result.code, result.out, started) == (2, "", [])
    assert result.err == f"mae: INDEX: {tmp_path}/photos.lance needs LanceDB: pip install 'mae-serve[index]'\n"


def test_right_options_start_a_server(started: list[object], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "serve", "--image-size", "112", "--preprocess", '{"filter": "bilinear"}').code == 0
    assert len(started) == 1
    assert run(capfd, "serve", "--weights", "hf:nobody/nothing").code == 0  # it is fetched while the server starts
