"""`mae embed`."""

import hashlib
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from starlette.testclient import TestClient

from model.images.open_image import readable_formats
from model.masking import random_visible
from service.api.app import create_app
from service.settings import Settings
from tests.service.cli.conftest import Mae
from tests.support.command_line import SCRIPT
from tests.support.embed_runs import NAMES
from tests.support.image_files import jpeg_file, noise, png_file
from tests.support.images import encoded

REGION = ",".join(str(14 * row + column) for row in range(4, 11) for column in range(4, 11))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_vectors_are_the_golden_ones(mae: Mae, squares: Path, golden: Mapping[str, np.ndarray], pool: str) -> None:
    result = mae("embed", squares, "-o", "out.npz", "--pool", pool)
    assert result == (0, "", "mae: 8 embedded, 0 already stored, 0 skipped: out.npz\n")
    with np.load("out.npz", allow_pickle=False) as out:
        assert out["paths"].tolist() == NAMES
        assert out["vectors"].dtype == np.float32
        np.testing.assert_allclose(out["vectors"], golden[f"embed_{pool}"], atol=1e-4)
        assert out["pool"].shape == () and out["pool"] == pool
        assert str(out["model"]).startswith("mae_tiny@")
    assert sorted(os.listdir()) == ["out.npz", "squares"]


def test_every_format_holds_the_same(mae: Mae, squares: Path) -> None:
    for suffix in ("npz", "parquet", "jsonl"):
        assert mae("embed", squares, "-o", f"out.{suffix}").code == 0
    with np.load("out.npz", allow_pickle=False) as out:
        arrays = dict(out)
    assert arrays["files"].tolist() == [os.path.realpath(name) for name in NAMES]
    space = {name: fact.tolist() for name, fact in arrays.items() if name not in ("paths", "files", "vectors")}
    space["preprocessing"] = json.loads(space["preprocessing"])
    table = pyarrow.parquet.read_table("out.parquet")
    assert table["path"].to_pylist() == NAMES and table["file"].to_pylist() == arrays["files"].tolist()
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), arrays["vectors"])
    assert json.loads(table.schema.metadata[b"mae-serve"]) == space
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == NAMES
    np.testing.assert_array_equal(np.array([line["vector"] for line in lines], dtype=np.float32), arrays["vectors"])
    assert [line["file"] for line in lines] == arrays["files"].tolist()
    assert all(line["space"] == space["space"] and line["properties"] == space for line in lines)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "jsonl"])
def test_an_image_is_recognised_from_another_folder(
    mae: Mae, squares: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(f"out.{suffix}").absolute()
    assert mae("embed", *NAMES[:3], "squares/../squares/1.png", "-o", output).err == (
        f"mae: 3 embedded, 1 already stored, 0 skipped: {output}\n"
    )
    Path("linked").symlink_to("squares")
    before = output.read_bytes()
    assert mae("embed", *(f"linked/{number}.png" for number in range(3)), "-o", output).code == 0
    monkeypatch.chdir("squares")
    result = mae("embed", "0.png", "1.png", "2.png", "3.png", "-o", output)
    assert result.err == f"mae: 1 embedded, 3 already stored, 0 skipped: {output}\n"
    monkeypatch.chdir("..")
    assert mae("embed", *NAMES[:4], "-o", output).err == f"mae: 0 embedded, 4 already stored, 0 skipped: {output}\n"
    if suffix == "jsonl":
        paths = [json.loads(line)["path"] for line in output.read_text().splitlines()]
        assert paths == [*NAMES[:3], "3.png"] and output.read_bytes().startswith(before)


def test_the_space_of_a_file_is_that_of_the_route(mae: Mae, squares: Path, probe: Path, tmp_path: Path) -> None:
    """The same word in the file, in the JSON answer and in the header, for several parameters."""
    app = create_app(Settings(weights=str(probe), backend="torch", engine_cache=tmp_path, lanes=1))
    pixels = "224-short-1.0-bicubic-srgb-0.485,0.456,0.406-0.229,0.224,0.225"
    model = f"mae_tiny@{hashlib.sha256(probe.read_bytes()).hexdigest()[:12]}"
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        for number, (flags, query, end) in enumerate(
            [
                ((), {}, "mean"),
                (("--pool", "cls", "--normalize"), {"pool": "cls", "normalize": "true"}, "cls:unit"),
                (("--keep", "0.5", "--seed", "3"), {"keep": "0.5", "seed": "3"}, "mean:keep=0.5"),
                (("--patches", REGION), {"patches": REGION}, "mean:region"),
            ]
        ):
            flags = (*flags, "--backend", "torch", "--lanes", "1")
            assert mae("embed", NAMES[0], "-o", f"{number}.npz", *flags).code == 0
            with np.load(f"{number}.npz") as arrays:
                space, keep, vectors = str(arrays["space"]), float(arrays["keep"]), arrays["vectors"]
            assert space == f"{model}:fp32:{pixels}:3-heads:{end}"
            answer = client.post("/embed", params=query, content=Path(NAMES[0]).read_bytes())
            assert (answer.json()["space"], answer.headers["x-mae-space"]) == (space, space)
            assert (answer.json()["precision"], answer.json()["keep"]) == ("fp32", keep)
            assert keep == 49 / 196 if "patches" in query else keep == float(query.get("keep", 1))
            np.testing.assert_allclose(vectors, answer.json()["embeddings"], atol=1e-5)
            assert answer.json()["normalized"] is ("normalize" in query)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "jsonl"])
def test_tokens_can_be_kept_in_part_and_added_to(mae: Mae, squares: Path, suffix: str) -> None:
    flags = ("--pool", "tokens", "--keep", "0.25")
    assert mae("embed", *NAMES[:3], "-o", f"out.{suffix}", *flags, "--seed", "5").code == 0
    assert mae("embed", *NAMES, "-o", f"out.{suffix}", *flags).err.startswith(
        "mae: 5 embedded, 3 already stored"
    )  # seed 5
    assert mae("embed", squares, "-o", "mean.npz", "--keep", "0.25", "--seed", "5").code == 0
    visible_indices = random_visible(14, 0.25, 5).tolist()
    if suffix == "npz":
        with np.load("out.npz") as out:
            paths, vectors, positions = out["paths"].tolist(), out["vectors"], out["positions"].tolist()
            assert out["seed"] == 5 and out["grid"].tolist() == [14, 14]
    elif suffix == "parquet":
        table = pyarrow.parquet.read_table("out.parquet")
        paths, vectors = table["path"].to_pylist(), np.array(table["vector"].to_pylist(), dtype=np.float32)
        positions = json.loads(table.schema.metadata[b"mae-serve"])["positions"]
    else:
        lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        paths, vectors = [line["path"] for line in lines], np.array([line["vector"] for line in lines], np.float32)
        positions = lines[-1]["properties"]["positions"]
    assert paths == NAMES and positions == visible_indices
    assert vectors.shape == (8, 49, 192)
    with np.load("mean.npz") as mean:
        np.testing.assert_allclose(vectors.mean(axis=1), mean["vectors"], atol=1e-5)


def test_folders_are_searched_and_bad_files_skipped(
    mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Mapping[str, Image.Image]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b/deep").mkdir(parents=True)
    photographs["chelsea"].save("b/deep/chelsea.JPEG")
    photographs["coffee"].save("b/coffee.webp")
    photographs["rocket"].save("a.png")
    photographs["astronaut"].save("b/astronaut.data", format="PNG")
    Path("b/text.jpg").write_text("no image")
    Path("b/notes.txt").write_text("not even called one")
    os.link("a.png", b"b/\xff.png")
    result = mae("embed", "b", "a.png", "b/astronaut.data", "b/coffee.webp", "-o", "out.npz")
    assert result.code == 1
    assert result.err.splitlines() == [
        f"mae: b/text.jpg is no image that can be read ({', '.join(readable_formats())})",
        "mae: b/\ufffd.png: its name is not UTF-8",
        "mae: left out: 2 files of formats that are not read (1 .data, 1 .txt)",
        "mae: 4 embedded, 1 already stored, 2 skipped: out.npz",  # coffee.webp is named twice
    ]
    with np.load("out.npz") as out:
        assert out["paths"].tolist() == ["b/coffee.webp", "b/deep/chelsea.JPEG", "a.png", "b/astronaut.data"]


def test_nothing_but_bad_files_makes_no_output(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.png").write_text("no image")
    assert mae("embed", "bad.png", "-o", "out.npz").code == 1
    assert os.listdir() == ["bad.png"]


def test_normalized_vectors_point_the_same_way(mae: Mae, squares: Path, golden: Mapping[str, np.ndarray]) -> None:
    assert mae("embed", squares, "-o", "out.npz", "--normalize").code == 0
    with np.load("out.npz") as out:
        lengths = np.linalg.norm(golden["embed_mean"], axis=1, keepdims=True)
        np.testing.assert_allclose(out["vectors"], golden["embed_mean"] / lengths, atol=1e-5)
        assert out["normalize"]


def test_a_bar_is_shown_on_a_terminal_alone(squares: Path, mae: Mae, environment: Mapping[str, str]) -> None:
    assert mae("embed", squares, "-o", "first.npz").err.count("\n") == 1
    ours, theirs = pty.openpty()
    command = [SCRIPT, "embed", str(squares), "-o", "out.npz"]
    with subprocess.Popen(command, env={**environment, "TERM": "xterm"}, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        try:
            while chunk := os.read(ours, 65536):
                output += chunk
        except OSError:  # Linux says so when the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    assert b"images/s" in output and b"8/8" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "-o", "out.npz"], "nowhere: No such file or directory"),
        (["empty", "-o", "out.npz"], "there are no images in empty"),
        (["squares", "-o", "out.csv"], "out.csv should end in one of .npz, .parquet, .jsonl"),
        (["squares", "-o", "nowhere/out.npz"], "there is no folder nowhere"),
        (["squares", "-o", "folder.npz"], "folder.npz is no regular file"),
        (["squares", "-o", "foreign.npz"], "foreign.npz is damaged or was not written by mae embed"),
        (["squares", "-o", "foreign.jsonl"], "foreign.jsonl is damaged or was not written by mae embed"),
        (["squares", "-o", "foreign.parquet"], "foreign.parquet is damaged or was not written by mae embed"),
        (["squares", "-o", "out.npz", "--keep", "0"], "keep: Input should be greater than 0"),
        (["squares", "-o", "out.npz", "--keep", "0.001"], "keep=0.001 leaves none of the 196 patches"),
        (["squares", "-o", "out.npz", "--pool", "max"], "pool: Input should be 'mean', 'cls' or 'tokens'"),
        (["squares", "-o", "out.npz", "--lanes", "none"], "LANES: Input should be a valid integer"),
        (["squares", "-o", "out.npz", "--weights", "nix"], "nix does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence(mae: Mae, squares: Path, arguments: list[str], sentence: str) -> None:
    Path("empty").mkdir()
    Path("folder.npz").mkdir()
    np.savez("foreign.npz", vectors=np.zeros(3))
    Path("foreign.jsonl").write_text('{"path": "a", "vector": [1]}\n')
    Path("foreign.parquet").write_bytes(b"PAR1")
    before = sorted(os.listdir())
    result = mae("embed", *arguments)
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("mae: ") and sentence in result.err and result.err.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_parquet_names_the_package_it_needs(mae: Mae, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = mae("embed", squares, "-o", "out.parquet")
    assert result == (2, "", "mae: writing .parquet needs the package pyarrow: pip install pyarrow\n")


def test_images_are_read_as_the_service_reads_them(mae: Mae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged pixels are no black picture, a JPEG may lack its end, and a limit holds for what is decoded."""
    monkeypatch.chdir(tmp_path)
    Path("sent").mkdir()
    image = Image.fromarray(noise(8, 8)).resize((1000, 900), Image.Resampling.BICUBIC)
    whole = jpeg_file(image)
    for name, data in {"a.jpg": whole, "b.jpg": whole[:-2]}.items():
        Path("sent", name).write_bytes(data)
    png = bytearray(png_file(noise(500, 400)))
    png[len(png) // 2 : len(png) // 2 + 64] = b"\xff" * 64
    Path("sent", "damaged.png").write_bytes(png)
    Path("sent", "large.png").write_bytes(encoded(image))
    code, _, err = mae("embed", "sent", "-o", "sent.npz", "--max-pixels", "899999")
    assert code == 1
    assert "sent/damaged.png" in err and "sent/large.png has 1000 x 900 pixels; the limit is 899999" in err
    with np.load("sent.npz") as out:
        assert out["paths"].tolist() == ["sent/a.jpg", "sent/b.jpg"]
        assert np.array_equal(*out["vectors"])
