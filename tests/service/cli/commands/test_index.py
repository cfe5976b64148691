"""`mae index`, `mae search` and `mae duplicates`."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.arrays import Floats
from model.checkpoints.checkpoint import Checkpoint, save
from model.checkpoints.heads import Heads, Whitening
from model.config import MAEConfig, Preprocessing
from model.engines import build as building
from model.engines.base import ServedModel
from model.engines.settings import EngineSettings
from model.nn.vit import MaskedAutoencoder
from service.cli import index_run
from service.cli.vector_files.parquet import write_rows
from service.cli.vector_files.reading import read_vectors
from service.index.sheet import CAPTION, GAP
from service.index.store import ImageIndex
from service.index.thumbnails import SIDE
from tests.service.cli.conftest import Mae, run

WEIGHTS = ("--weights", "white.safetensors", "--backend", "torch")


@pytest.fixture(scope="module")
def built() -> dict[str, ServedModel]:
    """Engines by their settings: the models of all tests are the same."""
    return {}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, ServedModel]) -> Path:
    """A small model with a whitening in the current folder, and twelve images of noise in `zoo`, in two folders."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MAE_")]:
        monkeypatch.delenv(name)
    real = building.build

    def build(spec: EngineSettings, *progress: Callable[[str], None]) -> ServedModel:
        if repr(spec) not in built:
            built[repr(spec)] = real(spec, *progress)
        return built[repr(spec)]

    monkeypatch.setattr(building, "build", build)
    torch.manual_seed(0)
    config = MAEConfig(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_depth=0, name="zoo")
    rng = np.random.default_rng(0)
    whitening = Whitening(rng.normal(size=16).astype("f4"), rng.normal(size=(16, 15)).astype("f4"))
    tensors = dict(MaskedAutoencoder(config).state_dict())
    heads = Heads(whitening={"mean": whitening})
    save(Path("white.safetensors"), Checkpoint(config, Preprocessing(), "mae-serve", tensors, heads=heads))
    for number in range(12):
        folder = Path("zoo", "cats" if number < 6 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        make_image(folder / f"{number}.png", number)
    return Path("zoo")


def make_image(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def mae(zoo: Path, capfd: pytest.CaptureFixture[str]) -> Mae:
    """Runs a command with the small model."""

    def run_with_model(command: str, *arguments: object) -> Any:
        options = () if command in ("duplicates", "pack") or "--weights" in arguments else WEIGHTS
        return run(capfd, command, *arguments, *options)

    return run_with_model


def vectors_of(mae: Mae, *options: object) -> tuple[list[str], Floats]:
    """Paths and vectors of the images by `mae embed`."""
    assert mae("embed", "zoo", "-o", "all.npz", "--overwrite", *options).code == 0
    with np.load("all.npz") as arrays:
        return arrays["paths"].tolist(), arrays["vectors"]


def by_cosine(vectors: Floats, query: Floats) -> tuple[np.ndarray, Floats]:
    cosine = (vectors @ query) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(-cosine)
    return order, cosine[order]


def test_a_search_finds_what_brute_force_over_embedded_vectors_finds(mae: Mae) -> None:
    made = mae("index", "zoo", "-o", "photos.lance")
    assert made.code == 0
    assert made.out.splitlines() == [
        "photos.lance: vectors are whitened by the model's whitening of pool=mean",
        "photos.lance: 12 added, 0 replaced, 0 dropped, 0 unchanged, 0 skipped; 12 images, searched exactly",
    ]
    paths, vectors = vectors_of(mae, "--whiten")
    result = mae("search", "zoo/cats", "--index", "photos.lance", "-k", 4, "--format", "json")
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["path"] for line in lines] == paths[:6]
    for line, query in zip(lines, vectors, strict=False):
        order, cosine = by_cosine(vectors, query)
        assert [near["path"] for near in line["neighbours"]] == [paths[number] for number in order[:4]]
        assert [near["file"] for near in line["neighbours"]] == [os.path.abspath(paths[number]) for number in order[:4]]
        np.testing.assert_allclose([near["similarity"] for near in line["neighbours"]], cosine[:4], atol=1e-5)
    table = mae("search", "zoo/cats/0.png", "--index", "photos.lance", "-k", 2)
    assert table.code == 0 and "1.000   zoo/cats/0.png" in table.out


@pytest.mark.parametrize(
    ("options", "embed_options"),
    [(["--no-whiten"], []), (["--pool", "cls"], ["--pool", "cls"]), (["--dimensions", "5"], ["--dimensions", "5"])],
)
def test_how_images_are_embedded_can_be_chosen(mae: Mae, options: list[str], embed_options: list[str]) -> None:
    made = mae("index", "zoo", "-o", "photos.lance", *options)
    assert made.code == 0
    assert ("are not whitened" in made.out) == (options != ["--dimensions", "5"])  # there is no whitening of cls
    paths, vectors = vectors_of(mae, *embed_options)
    [line] = mae("search", "zoo/dogs/7.png", "--index", "photos.lance", "--format", "json").out.splitlines()
    order, _ = by_cosine(vectors, vectors[paths.index("zoo/dogs/7.png")])
    assert [near["path"] for near in json.loads(line)["neighbours"]] == [paths[number] for number in order[:10]]
    refused = mae("index", "zoo", "-o", "photos.lance", "--dimensions", "3")
    assert refused.code == 2 and "dimensions=3 is asked for, but the vectors have dimensions=" in refused.err


def test_a_second_run_adds_replaces_and_drops(mae: Mae, zoo: Path) -> None:
    mae("index", "zoo/cats", "zoo/dogs", "-o", "photos.lance")
    unchanged = mae("index", "zoo", "-o", "photos.lance", "--weights", "missing")  # no engine is needed
    assert (unchanged.code, "0 added, 0 replaced, 0 dropped, 12 unchanged" in unchanged.out) == (0, True)
    make_image(zoo / "cats" / "0.png", 100)
    os.utime(zoo / "cats" / "0.png", (1, 1))
    make_image(zoo / "cats" / "new.png", 101)
    (zoo / "dogs" / "6.png").unlink()
    (zoo / "dogs" / "7.png").write_bytes(b"no image any more")
    updated = mae("index", "zoo", "-o", "photos.lance")
    assert (updated.code, "1 added, 1 replaced, 2 dropped, 9 unchanged, 1 skipped; 11 images" in updated.out) == (
        1,
        True,
    )
    assert "mae: zoo/dogs/7.png is no image" in updated.err
    (zoo / "dogs" / "7.png").unlink()
    paths, vectors = vectors_of(mae, "--whiten")
    index = ImageIndex.open(Path("photos.lance"))
    stored = {path: vector for _, names, batch in index.vectors() for path, vector in zip(names, batch, strict=True)}
    assert sorted(stored) == sorted(paths)
    np.testing.assert_array_equal(np.stack([stored[path] for path in paths]), vectors)
    only_dogs = mae("index", "zoo/dogs", "-o", "photos.lance")
    assert "0 dropped, 4 unchanged" in only_dogs.out  # the cats were not searched for
    (zoo / "dogs").rename("elsewhere")
    assert "4 dropped" in mae("index", "zoo", "-o", "photos.lance").out


def test_what_a_folder_s_archives_and_packs_hold_is_not_gone(mae: Mae, zoo: Path) -> None:
    with tarfile.open("zoo/birds.tar", "w") as archive:
        archive.add("zoo/cats/0.png", "nested/0.png")
    assert mae("pack", "zoo/dogs", "-o", "zoo/dogs.pack").code == 0
    shutil.copy("zoo/cats/1.png", "zoo/picture.data")
    assert mae("embed", "zoo/birds.tar", "-o", "v/", "--whiten").code == 0
    assert mae("index", "v/", "-o", "photos.lance").code == 0
    for named in ("zoo/dogs.pack", "zoo/picture.data"):
        assert mae("index", named, "-o", "photos.lance").code == 0
    folder = mae("index", "zoo", "-o", "photos.lance")  # which searches none of the three
    assert "12 added, 0 replaced, 0 dropped, 0 unchanged, 0 skipped; 20 images" in folder.out
    for name in ("dogs.pack", "birds.tar", "picture.data"):
        Path("zoo", name).unlink()
    assert "8 dropped, 12 unchanged" in mae("index", "zoo", "-o", "photos.lance").out


def test_a_table_in_a_pipe_has_whole_paths(mae: Mae, zoo: Path) -> None:
    folder = "a-folder-with-a-name-that-is-longer-than-the-lines-of-a-terminal-usually-are-" + "x" * 40
    (zoo / "cats").rename(zoo / folder)
    shutil.copy(zoo / folder / "0.png", zoo / folder / "copy.png")
    assert mae("index", "zoo", "-o", "photos.lance").code == 0
    found = mae("search", f"zoo/{folder}/0.png", "--index", "photos.lance", "-k", "2").out.splitlines()
    assert [line.split()[-1] for line in found if ".png" in line] == [
        f"zoo/{folder}/0.png",
        *(f"zoo/{folder}/{name}" for name in ("0.png", "copy.png")),
    ]
    groups = mae("duplicates", "--index", "photos.lance", "--threshold", "0.01").out
    assert f" zoo/{folder}/0.png" in groups and f" zoo/{folder}/copy.png" in groups


@pytest.mark.parametrize("output", ["v.npz", "v.parquet", "v.jsonl", "v/"])
def test_outputs_of_embed_are_indexed(mae: Mae, zoo: Path, output: str) -> None:
    assert mae("embed", "zoo", "-o", output, "--whiten").code == 0
    made = mae("index", output, "-o", "photos.lance")
    assert (made.code, "12 added" in made.out) == (0, True)
    assert "0 replaced, 0 dropped, 12 unchanged" in mae("index", output, "-o", "photos.lance").out
    direct = mae("index", "zoo", "-o", "direct.lance")
    assert direct.code == 0
    query = ("search", "zoo", "--format", "json", "--index")
    assert mae(*query, "photos.lance").out == mae(*query, "direct.lance").out
    make_image(zoo / "cats" / "0.png", 100)
    (zoo / "dogs" / "6.png").unlink()
    shutil.rmtree(output) if output.endswith("/") else Path(output).unlink()
    assert mae("embed", "zoo", "-o", output, "--whiten").code == 0
    updated = mae("index", output, "-o", "photos.lance")
    assert "0 added, 1 replaced, 1 dropped, 10 unchanged, 0 skipped; 11 images" in updated.out


def test_images_that_failed_in_embed_are_left_out(mae: Mae, zoo: Path) -> None:
    assert mae("embed", "zoo", "-o", "v/", "--whiten").code == 0
    assert mae("index", "v/", "-o", "photos.lance").code == 0
    (zoo / "cats" / "0.png").write_bytes(b"no image any more")
    assert mae("embed", "zoo", "-o", "v/", "--whiten", "--changed").code == 1
    updated = mae("index", "v/", "-o", "photos.lance")
    assert "0 added, 0 replaced, 1 dropped, 11 unchanged" in updated.out
    assert "mae: 1 images of v have no vector, and its errors say why" in updated.err


def test_the_later_of_two_rows_of_a_file_counts(mae: Mae, zoo: Path) -> None:
    assert mae("embed", "zoo", "-o", "v/", "--whiten").code == 0
    read = read_vectors(Path("v"))
    later = [
        record._replace(vector=-record.vector, size=7) for record in read.records if record.path.endswith("/3.png")
    ]
    write_rows(Path("v/part-00001.parquet"), read.space, later)
    assert "12 added" in mae("index", "v", "-o", "photos.lance").out
    index = ImageIndex.open(Path("photos.lance"))
    assert index.files()[os.path.abspath("zoo/cats/3.png")].size == 7
    [near] = index.search(later[0].vector[None], 1)[0]
    assert (near.path, near.similarity) == ("zoo/cats/3.png", pytest.approx(1, abs=1e-5))


def test_a_large_index_gets_cells_even_if_the_run_before_did_not_come_to_it(
    mae: Mae, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = mae("search", "zoo/20.png", "--index", "photos.lance", "-k", 3).out
    monkeypatch.setattr(index_run, "EXACT_ROWS", 5)
    updated = mae("index", "zoo", "-o", "photos.lance")
    assert "42 unchanged, 0 skipped; 42 images, of which a search finds 100.0% of the 10 nearest" in updated.out
    assert mae("search", "zoo/20.png", "--index", "photos.lance", "-k", 3).out == exact
    assert ImageIndex.open(Path("photos.lance")).approximation is not None


def test_images_join_an_index_of_vectors(mae: Mae, zoo: Path) -> None:
    assert mae("embed", "zoo/cats", "-o", "v.parquet", "--whiten", "--normalize").code == 0
    assert mae("index", "v.parquet", "-o", "photos.lance").code == 0
    added = mae("index", "zoo/dogs", "-o", "photos.lance")
    assert (added.code, "6 added" in added.out) == (0, True)
    lengths = [np.linalg.norm(batch, axis=1) for _, _, batch in ImageIndex.open(Path("photos.lance")).vectors()]
    np.testing.assert_allclose(np.concatenate(lengths), 1, atol=1e-5)  # as the vectors that were there first


def test_vectors_of_another_space_are_refused_by_name(mae: Mae, zoo: Path) -> None:
    mae("index", "zoo", "-o", "photos.lance")
    assert mae("embed", "zoo", "-o", "raw.npz").code == 0
    refused = mae("index", "raw.npz", "-o", "photos.lance")
    assert refused.code == 2 and refused.err.count("zoo@") == 2 and ":whitened" in refused.err
    assert mae("embed", "zoo", "-o", "tokens.npz", "--pool", "tokens").code == 0
    assert "needs one vector per image" in mae("index", "tokens.npz", "-o", "new.lance").err
    tensors = dict(MaskedAutoencoder(config := MAEConfig(**small(), name="other")).state_dict())
    save(Path("other.safetensors"), Checkpoint(config, Preprocessing(), "mae-serve", tensors))
    other = ("--weights", "other.safetensors", "--backend", "torch")
    make_image(zoo / "new.png", 100)
    for command in (["search", "zoo", "--index", "photos.lance"], ["index", "zoo", "-o", "photos.lance"]):
        result = mae(*command, *other)
        assert (result.code, result.out) == (2, "")
        assert "mae: photos.lance holds vectors of the space zoo@" in result.err and "other@" in result.err


def small() -> dict[str, Any]:
    return {"image_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_depth": 0}


def test_mistakes_are_one_line(mae: Mae) -> None:
    for arguments, message in (
        (["index", "zoo", "-o", "photos"], "mae: photos should end in .lance"),
        (["index", "zoo", "-o", "nowhere/photos.lance"], "mae: there is no folder nowhere"),
        (["index", "nothing", "-o", "photos.lance"], "mae: nothing: No such file or directory"),
        (["search", "zoo", "--index", "photos.lance"], "mae: there is no index photos.lance"),
        (["duplicates", "--index", "photos.lance"], "mae: there is no index photos.lance"),
    ):
        result = mae(*arguments)
        assert result.code == 2 and result.err.startswith(message) and result.err.count("\n") == 1
    assert not Path("photos.lance").exists()


def test_thumbnails_are_stored_if_asked_for(mae: Mae) -> None:
    mae("index", "zoo/cats", "-o", "photos.lance", "--thumbnails")
    mae("index", "zoo/dogs", "-o", "photos.lance")
    index = ImageIndex.open(Path("photos.lance"))
    found = index.search(np.ones((1, 15), np.float32), 12, thumbnails=True)[0]
    assert {near.thumbnail is not None for near in found if "cats" in near.path} == {True}
    assert {near.thumbnail for near in found if "dogs" in near.path} == {None}
    [thumbnail] = [near.thumbnail for near in found if near.path == "zoo/cats/3.png"]
    assert thumbnail
    with Image.open(BytesIO(thumbnail)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (48, 40))


def pixels(path: str | Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.copy()


def cell(sheet: Image.Image, row: int, column: int) -> np.ndarray:
    """The square of a thumbnail on a sheet."""
    left, top = GAP + column * (SIDE + GAP), GAP + row * (SIDE + CAPTION + GAP)
    return np.asarray(sheet.crop((left, top, left + SIDE, top + SIDE)))


def test_a_sheet_shows_queries_and_neighbours(mae: Mae, zoo: Path) -> None:
    mae("index", "zoo", "-o", "photos.lance")
    (zoo / "cats" / "0.png").rename("query.png")
    result = mae("search", "query.png", "zoo/dogs/8.png", "--index", "photos.lance", "-k", 3, "--sheet", "found.png")
    assert result.code == 0
    sheet = pixels("found.png")
    assert sheet.size == (GAP + 4 * (SIDE + GAP), GAP + 2 * (SIDE + CAPTION + GAP))
    square = cell(sheet, 0, 0)
    top, left = (SIDE - 40) // 2, (SIDE - 48) // 2
    np.testing.assert_array_equal(square[top : top + 40, left : left + 48], np.asarray(pixels("query.png")))
    missing = cell(sheet, 0, 1)  # the nearest is the query itself, which is there no more
    assert (missing[:10] == 235).all()
    np.testing.assert_array_equal(cell(sheet, 1, 0), cell(sheet, 1, 1))


@pytest.fixture
def copies(mae: Mae, zoo: Path) -> Path:
    """Forty images of noise, an index of them, and smaller files of the same pictures as two of them."""
    for number in range(12, 40):
        make_image(zoo / f"{number}.png", number)
    for number in (1, 20):
        picture = pixels(next(zoo.rglob(f"{number}.png")))
        picture.save(zoo / f"copy of {number}.jpg", quality=80, subsampling=0)
    assert mae("index", "zoo", "-o", "photos.lance").code == 0
    return zoo


def test_duplicates_are_grouped_and_the_largest_is_kept(mae: Mae, copies: Path) -> None:
    result = mae("duplicates", "--index", "photos.lance", "--format", "json", "--sheet", "groups.png")
    assert result.code == 0
    groups = [json.loads(line) for line in result.out.splitlines()]
    assert {tuple(file["path"] for file in group["files"]) for group in groups} == {
        ("zoo/cats/1.png", "zoo/copy of 1.jpg"),
        ("zoo/20.png", "zoo/copy of 20.jpg"),
    }
    for group in groups:
        sizes = [file["size"] for file in group["files"]]
        assert sizes == [os.path.getsize(file["path"]) for file in group["files"]] == sorted(sizes, reverse=True)
        assert group["keep"] == group["files"][0]["file"] == os.path.abspath(group["files"][0]["path"])
    assert pixels("groups.png").height == GAP + 2 * (SIDE + CAPTION + GAP)
    assert result.err.startswith("mae: 2 groups with 2 images beside those to keep")
    table = mae("duplicates", "--index", "photos.lance")
    assert table.out.count("keep") == 2 and "zoo/copy of 20.jpg" in table.out
    assert len(list(copies.rglob("*.*"))) == 42  # nothing was deleted
    none = mae("duplicates", "--index", "photos.lance", "--threshold", 0)
    assert (none.code, none.out) == (0, "") and "0 groups" in none.err


@pytest.mark.live
def test_a_killed_run_leaves_an_index_that_the_next_run_completes(mae: Mae, zoo: Path) -> None:
    source = zoo / "cats" / "0.png"
    for number in range(600):
        os.link(source, zoo / f"link {number}.png")
    code = (
        "import sys; from service.index import update; update.ROWS_AT_ONCE = 8; "
        "from service.cli.main import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "index", "zoo", "-o", "photos.lance", *WEIGHTS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    stored = 0
    while stored < 16:
        assert process.poll() is None and time.monotonic() < end
        versions = Path("photos.lance/_versions")
        stored = ImageIndex.open(Path("photos.lance")).count if versions.is_dir() and any(versions.iterdir()) else 0
        time.sleep(0.005)
    process.kill()
    process.wait()
    left = ImageIndex.open(Path("photos.lance")).count  # an open index would count what is written later, too
    assert 16 <= left < 612 and left % 8 == 0
    completed = mae("index", "zoo", "-o", "photos.lance")
    assert f"{612 - left} added, 0 replaced, 0 dropped, {left} unchanged" in completed.out
    files = [file for names, _, _ in ImageIndex.open(Path("photos.lance")).vectors() for file in names]
    assert len(files) == len(set(files)) == 612


def run_recipe(mae: Mae, title: str) -> dict[str, Any]:
    """Runs the blocks under a heading of the documentation as they are written; returns the names that Python set."""
    page = (Path(__file__).parents[4] / "service" / "cli" / "README.md").read_text()
    [section] = re.findall(rf"^### Recipe: {title}\n(.*?)(?=^#+ |\Z)", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, title, "exec"), names)
            continue
        for line in block.splitlines():
            command, _, target = line.partition(" > ")
            words = shlex.split(command, comments=True)
            assert words.pop(0) == "mae"
            result = mae(*words)
            assert result.code == 0, result.err
            if target:
                Path(target).write_text(result.out)
    return names


def test_recipe_of_near_duplicates(mae: Mae, copies: Path) -> None:
    shutil.rmtree("photos.lance")
    copies.rename("photographs")
    names = run_recipe(mae, "near-duplicates")
    assert sorted(map(os.path.basename, names["spare"])) == ["copy of 1.jpg", "copy of 20.jpg"]
    assert pixels("groups.png").size == (GAP + 2 * (SIDE + GAP), GAP + 2 * (SIDE + CAPTION + GAP))


def test_recipe_of_search_by_image(mae: Mae, zoo: Path) -> None:
    zoo.rename("photographs")
    pixels("photographs/dogs/9.png").save("query.jpg", quality=95, subsampling=0)
    names = run_recipe(mae, "search by image")
    assert pixels("found.png").width == GAP + 6 * (SIDE + GAP)
    assert names["nearest"][0]["path"] == names["image"]["path"]
    assert names["nearest"][0]["_distance"] == pytest.approx(0, abs=1e-5) and len(names["nearest"]) == 5
    [line] = mae("search", "query.jpg", "--index", "photos.lance", "--format", "json").out.splitlines()
    assert json.loads(line)["neighbours"][0]["path"] == "photographs/dogs/9.png"


def test_recipe_of_labelling_by_neighbours(mae: Mae, zoo: Path) -> None:
    rng = np.random.default_rng(1)
    for folder in ("labelled/red", "labelled/blue", "new"):
        Path(folder).mkdir(parents=True)
    for number in range(12):
        for channel, label in ((0, "red"), (2, "blue")):
            picture = rng.integers(0, 60, (40, 40, 3), dtype=np.uint8)
            picture[..., channel] += 180
            folder = f"labelled/{label}" if number < 8 else "new"
            Image.fromarray(picture).save(f"{folder}/{label} {number}.png")
    names = run_recipe(mae, "labelling by neighbours")
    assert len(names["labels"]) == 8
    for path, (label, share) in names["labels"].items():
        assert Path(path).name.startswith(label) and share > 0.5
