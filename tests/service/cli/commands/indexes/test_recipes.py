"""The recipes for indexes of service/cli/README.md, run as they are written."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.index.sheet import CAPTION, GAP
from service.index.thumbnails import SIDE
from tests.service.cli.commands.indexes.conftest import pixels
from tests.service.cli.conftest import Mae


def run_recipe(mae: Mae, title: str) -> dict[str, Any]:
    """Runs the blocks under a heading of the documentation as they are written; returns the names that Python set."""
    page = (Path(__file__).parents[5] / "service" / "cli" / "README.md").read_text()
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
