"""`mae duplicates`."""

import json
import os
from pathlib import Path

from service.index.sheet import CAPTION, GAP
from service.index.thumbnails import SIDE
from tests.service.cli.commands.indexes.conftest import pixels
from tests.service.cli.conftest import Mae


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
