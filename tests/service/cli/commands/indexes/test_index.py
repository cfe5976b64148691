"""`mae index`: making an index, bringing it up to date, and what is refused."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoints.checkpoint import Checkpoint, save
from model.config import MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder
from service.cli import index_run
from service.cli.vector_files.parquet import write_rows
from service.cli.vector_files.reading import read_vectors
from service.index.store import ImageIndex
from tests.service.cli.commands.indexes.conftest import WEIGHTS, by_cosine, make_image, vectors_of
from tests.service.cli.conftest import Mae
from tests.support.held_commands import start_and_hold


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


@pytest.mark.live
def test_a_killed_run_leaves_an_index_that_the_next_run_completes(mae: Mae, zoo: Path) -> None:
    source = zoo / "cats" / "0.png"
    for number in range(60):
        os.link(source, zoo / f"link {number}.png")
    process = start_and_hold(
        *("service.index.update.IndexUpdate.store", 2, "index", "zoo", "-o", "photos.lance", *WEIGHTS),
        prelude="from service.index import update; update.ROWS_AT_ONCE = 8",
    )
    process.kill()
    process.communicate()
    assert ImageIndex.open(Path("photos.lance")).count == 16
    completed = mae("index", "zoo", "-o", "photos.lance")
    assert "56 added, 0 replaced, 0 dropped, 16 unchanged" in completed.out
    files = [file for names, _, _ in ImageIndex.open(Path("photos.lance")).vectors() for file in names]
    assert len(files) == len(set(files)) == 72
