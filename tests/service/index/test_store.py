"""Indexes of images on the disk."""

import sys
from pathlib import Path

import numpy as np
import pytest

from model.arrays import Floats
from service.index import store
from service.index.errors import ForeignSpace, ImageIndexError, MissingIndex
from service.index.store import ImageIndex
from service.index.table import IndexRow, StoredFile
from tests.service.index.conftest import MakeIndex, describe, make_rows


def by_cosine(vectors: Floats, query: Floats, k: int) -> tuple[list[str], Floats]:
    """The nearest files by brute force, and their similarities."""
    cosine = (vectors @ query) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    nearest = np.argsort(-cosine)[:k]
    return [f"/photos/{number}.jpg" for number in nearest], cosine[nearest]


def test_neighbours_are_those_of_brute_force(make_index: MakeIndex, vectors: Floats) -> None:
    index = make_index(vectors[10:])
    queries = 5 * vectors[:3]  # of any length
    for query, neighbours in zip(queries, index.search(queries, 8), strict=True):
        files, cosine = by_cosine(vectors[10:], query, 8)
        assert [near.file for near in neighbours] == files
        assert [near.path for near in neighbours] == [Path(file).name for file in files]
        np.testing.assert_allclose([near.similarity for near in neighbours], cosine, atol=1e-5)
    assert index.search(queries[:1], 1)[0][0] == index.search(queries, 1)[0][0]  # alone as among others
    assert len(index.search(queries[:1], 500)[0]) == 190
    assert index.search(queries[:0]) == []


def test_a_search_in_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    index = ImageIndex.create(tmp_path / "empty.lance", describe(3))
    assert (index.count, index.search(np.eye(3, dtype=np.float32))) == (0, [[], [], []])


def test_an_opened_index_says_what_it_is(make_index: MakeIndex, vectors: Floats) -> None:
    made = make_index(vectors)
    index = ImageIndex.open(made.path, "fake:whitened")
    assert (index.name, index.count, index.space, index.model) == ("photos", 200, "fake:whitened", "fake@0")
    assert index.description == describe(7)
    assert index.approximation is None
    assert index.files()["/photos/3.jpg"] == StoredFile(3, 1_000_003, None)
    read = np.concatenate([batch for _, _, batch in index.vectors(rows_at_once=64)])
    np.testing.assert_array_equal(read, vectors)


def test_an_index_of_another_space_is_refused_by_name(make_index: MakeIndex, vectors: Floats) -> None:
    path = make_index(vectors).path
    with pytest.raises(ForeignSpace, match=r"photos\.lance .*fake:whitened.* other:mean"):
        ImageIndex.open(path, "other:mean")


def test_images_are_replaced_and_dropped(make_index: MakeIndex, vectors: Floats) -> None:
    index = make_index(vectors)
    reader = ImageIndex.open(index.path)
    quoted = IndexRow("/photos/it's.jpg", "it's.jpg", vectors[1], None, None, "/v.npz", b"jpeg")
    index.add([quoted])
    index.replace([IndexRow("/photos/0.jpg", "0.jpg", vectors[1], 7, 8)])
    index.remove([f"/photos/{number}.jpg" for number in range(1, 100)])
    assert index.count == 102
    assert index.files()["/photos/0.jpg"] == StoredFile(7, 8, None)
    assert index.files()["/photos/it's.jpg"] == StoredFile(None, None, "/v.npz")
    found = index.search(vectors[1:2], 2, thumbnails=True)[0]
    assert {near.file: near.thumbnail for near in found} == {"/photos/0.jpg": None, "/photos/it's.jpg": b"jpeg"}
    assert found[0].similarity <= 1
    index.remove(["/photos/it's.jpg"])
    index.compact()
    assert index.count == 101 and "/photos/it's.jpg" not in index.files()
    assert ImageIndex.open(index.path).search(vectors[1:2], 1)[0][0].file == "/photos/0.jpg"
    assert reader.count in (101, 200)  # what it has seen before, or what is there now


def test_a_reader_sees_what_is_written(make_index: MakeIndex, vectors: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_index(vectors[:100])
    monkeypatch.setattr(store, "REFRESH", 0 * store.REFRESH)
    reader = ImageIndex.open(index.path)
    assert reader.search(vectors[150:151], 1)[0][0].similarity < 0.999
    index.add(make_rows(vectors[100:], 100))
    assert reader.search(vectors[150:151], 1)[0][0].file == "/photos/150.jpg"


def test_another_index_in_its_place_is_noticed(
    make_index: MakeIndex, vectors: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REFRESH", 0 * store.REFRESH)
    path = make_index(vectors).path
    reader = ImageIndex.open(path)
    path.rename(tmp_path / "old.lance")
    with pytest.raises(ImageIndexError, match=r"photos\.lance"):
        reader.search(vectors[:1])
    for _ in range(4):  # more versions than the old one had
        ImageIndex.create(path, describe(7, "fake:other")) if not path.exists() else None
        ImageIndex.open(path).add(make_rows(vectors[:1]))
    with pytest.raises(ImageIndexError, match="was replaced by another index"):
        reader.search(vectors[:1])


def test_one_process_writes_at_a_time(make_index: MakeIndex, vectors: Floats) -> None:
    index = make_index(vectors)
    with index.writer():
        with pytest.raises(ImageIndexError, match="another process is writing"), ImageIndex.open(index.path).writer():
            pass
        assert ImageIndex.open(index.path).count == 200
        early = ImageIndex.open(index.path)
        index.add(make_rows(vectors[:3], 500))
    with early.writer():
        assert early.count == 203  # at once, not after REFRESH


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingIndex, match=r"there is no index .*none\.lance"):
        ImageIndex.open(tmp_path / "none.lance")
    with pytest.raises(ImageIndexError, match=r"should end in \.lance"):
        ImageIndex.open(tmp_path / "photos")
    (tmp_path / "folder.lance").mkdir()
    with pytest.raises(ImageIndexError, match=r"folder\.lance is no index"):
        ImageIndex.open(tmp_path / "folder.lance")
    with pytest.raises(ImageIndexError, match="exists already"):
        ImageIndex.create(tmp_path / "folder.lance", describe(3))


def test_a_table_of_somebody_else_is_refused(tmp_path: Path) -> None:
    import lancedb

    lancedb.connect(tmp_path).create_table("other", [{"vector": [1.0, 2.0]}])
    with pytest.raises(ImageIndexError, match=r"other\.lance is no index that mae index has made"):
        ImageIndex.open(tmp_path / "other.lance")


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ImageIndexError, match="pip install lancedb"):
        ImageIndex.open(tmp_path / "photos.lance")
