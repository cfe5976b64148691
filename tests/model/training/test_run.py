"""The folder of a run: what may be begun, what may be resumed, and what stays of an earlier process."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from model.training.config import FinetuningRecipe, Recipe
from model.training.run import Run, RunError, record_images, require_same_images, restore_recipe

IMAGES = record_images(["a.png", "b.png"], [Path("photographs")])


def begin(folder: Path, **options: object) -> Run:
    run = Run(folder)
    run.begin(Recipe(**options), IMAGES)  # type: ignore[arg-type]
    return run


def test_a_folder_is_begun_once(tmp_path: Path) -> None:
    begin(tmp_path / "deep" / "run", steps=3)
    record = json.loads((tmp_path / "deep" / "run" / "recipe.json").read_bytes())
    assert record["recipe"]["steps"] == 3
    assert record["data"] == {"folders": [str(Path("photographs").absolute())], "images": 2, "names": IMAGES["names"]}
    with pytest.raises(RunError, match="holds a run already: --resume goes on with it"):
        begin(tmp_path / "deep" / "run", steps=4)


def test_a_recipe_comes_back_with_the_options_that_may_change(tmp_path: Path) -> None:
    begin(tmp_path, steps=3, lr=0.5, threads=2)
    given = Recipe(steps=3, threads=1, log_steps=7)
    recipe, images = restore_recipe(tmp_path, given, {"steps", "threads", "log_steps"})
    assert (recipe.steps, recipe.lr, recipe.threads, recipe.log_steps) == (3, 0.5, 1, 7)
    assert images == IMAGES
    with pytest.raises(RunError, match=r"was begun with lr 0\.5: it cannot go on with another one"):
        restore_recipe(tmp_path, Recipe(lr=0.1), {"lr"})


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run to resume: it has no recipe\.json"):
        restore_recipe(tmp_path, Recipe(), set())
    begin(tmp_path, steps=3)
    with pytest.raises(RunError, match="holds a run of another command"):
        restore_recipe(tmp_path, FinetuningRecipe(), set())


@pytest.mark.parametrize("images", [["a.png"], ["b.png", "a.png"], ["a.png", "c.png"]])
def test_images_must_be_the_same_in_the_same_order(tmp_path: Path, images: list[str]) -> None:
    require_same_images(tmp_path, IMAGES, record_images(["a.png", "b.png"], [Path("elsewhere")]))
    with pytest.raises(RunError, match="was begun with 2 images; those found now are not the same"):
        require_same_images(tmp_path, IMAGES, record_images(images, [Path("photographs")]))


def test_lines_after_the_step_that_was_saved_are_dropped(tmp_path: Path) -> None:
    for first, last, resumed_at in ((1, 5, 0), (4, 6, 3)):
        run = Run(tmp_path, ("accuracy",))
        run.open_metrics(("step", "loss"), resumed_at)
        for step in range(first, last + 1):
            run.log({"step": step, "loss": step / 10})
        run.log({"step": last, "accuracy": 0.5})
        run.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        lines = [(line["step"], line["loss"], line["accuracy"]) for line in csv.DictReader(file)]
    assert lines == [(str(step), str(step / 10), "") for step in range(1, 7)] + [("6", "", "0.5")]


def test_a_run_without_a_state_has_none(tmp_path: Path) -> None:
    assert Run(tmp_path).load_state() is None
