"""`mae classify`, beside POST /classify."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.cli.commands import classify as command
from service.inference.classification import most_probable
from service.settings import Settings
from tests.service.cli.conftest import Mae, fill_zoo

CLASSES = ("ant", "bear", "owl\tsnowy", "yak")
ENGINE = ("--weights", "head.safetensors", "--backend", "torch", "--lanes", "1")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images, a broken one and a text in the folder `zoo`, beside `head.safetensors`."""
    monkeypatch.chdir(tmp_path)
    folder = fill_zoo(CLASSES, 3)
    (folder / "notes.txt").touch()
    return folder


def test_the_classes_are_those_of_the_route(mae: Mae, zoo: Path, tmp_path: Path) -> None:
    result = mae("classify", zoo, "--top-k", 2, "--json", *ENGINE)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["path"] for line in lines] == ["zoo/0.png", "zoo/1.png", "zoo/2.png"]
    app = create_app(Settings(weights="head.safetensors", backend="torch", engine_cache=tmp_path, lanes=1))
    files = [("image", Path(line["path"]).read_bytes()) for line in lines]
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        answer = client.post("/classify?top_k=2", files=files).json()
    assert [line["classes"] for line in lines] == [image["classes"] for image in answer["classifications"]]
    assert result.code == 1 and "zoo/torn.png" in result.err and "3 classified, 1 skipped" in result.err
    assert "left out: 1 file of formats that are not read (1 .txt)" in result.err


def test_sigterm_ends_a_run_as_ctrl_c_does(mae: Mae, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_and_rank(*arguments: Any) -> list[dict[str, Any]]:
        signal.raise_signal(signal.SIGTERM)
        return most_probable(*arguments)

    monkeypatch.setattr(command, "most_probable", end_and_rank)
    for number in range(200):  # more than are on their way at once
        (zoo / f"more-{number}.png").hardlink_to(zoo / "0.png")
    before = signal.getsignal(signal.SIGTERM)
    result = mae("classify", zoo, *ENGINE)
    assert result.code == 130 and "Traceback" not in result.err and len(result.out.splitlines()) < 200
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_table_has_a_line_for_each_image(mae: Mae, zoo: Path) -> None:
    result = mae("classify", zoo / "0.png", zoo / "1.png", *ENGINE)
    rows = [line.split("\t") for line in result.out.replace("owl\tsnowy", "owl snowy").splitlines()]
    assert result.code == 0 and [row[0] for row in rows] == ["zoo/0.png", "zoo/1.png"]
    for row in rows:
        assert sorted(row[1::2]) == ["ant", "bear", "owl snowy", "yak"]
        probabilities = [float(text) for text in row[2::2]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-3)


def test_weights_without_a_head_are_refused(mae: Mae, squares: Path) -> None:
    result = mae("classify", squares)
    assert (result.code, result.out) == (2, "")
    assert "has no classification head: mae finetune trains one" in result.err


def test_a_folder_without_images(mae: Mae, zoo: Path) -> None:
    Path("phone").mkdir()
    Path("phone/a.cr3").touch()
    result = mae("classify", "phone", *ENGINE)
    assert result.code == 2 and "there are no images in phone; left out: 1 file" in result.err
