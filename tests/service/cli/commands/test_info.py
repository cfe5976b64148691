"""`mae info`."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from model.engines.base import EngineInfo
from tests.service.cli.conftest import Mae
from tests.support.indexes import write_index


def test_json_describes_what_would_be_served(mae: Mae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_API_KEYS", "hush-hush")
    monkeypatch.setenv("MAE_MAX_BATCH", "3")
    monkeypatch.setenv("MAE_LANES", "2")
    result = mae("info", "--json", "--lanes", "1", "--max-pixels", "1000")
    description = json.loads(result.out)
    assert result.code == 0 and result.err == ""
    assert description["model"].startswith("mae_tiny@") and description["version"] == version("mae-serve")
    assert (
        description["engine"]["lanes"],
        description["engine"]["preferred_batch"],
        description["limits"]["max_batch"],
    ) == (1, 3, 3)
    assert description["engine"]["parity"]["cosine"] >= 0.999999
    assert description["engine"]["versions"]["numpy"] == version("numpy")
    assert description["settings"]["max_pixels"] == description["limits"]["max_pixels"] == 1000
    assert "hush" not in result.out


def test_the_index_that_would_be_searched(mae: Mae, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    description = json.loads(mae("info", "--json").out)
    assert description["index"] is None
    info = EngineInfo.model_validate(description["engine"])
    vectors = {"a.png": np.ones(info.config.embed_dim, np.float32)}
    index = write_index(tmp_path / "photos.lance", vectors, info)
    monkeypatch.setenv("MAE_INDEX", str(tmp_path / "photos.lance"))
    expected = {"name": "photos", "space": index.space, "rows": 1, "exact": True, "recall": None}
    assert json.loads(mae("info", "--json").out)["index"] == expected
    write_index(tmp_path / "other.lance", vectors, info.model_copy(update={"model": "other"}))
    monkeypatch.setenv("MAE_INDEX", str(tmp_path / "other.lance"))
    refused = mae("info")
    assert refused.code == 2 and "of the space other@" in refused.err and refused.err.count("\n") == 1


def test_the_table_shows_the_same(mae: Mae) -> None:
    result = mae("info")
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines() if not line.startswith(" "))
    assert rows["model"].startswith("mae_tiny@")
    assert rows["engine.backend"].strip() == "openvino"
    assert rows["engine.config.qkv_bias"].strip() == "yes"
    assert rows["engine.preprocessing.mean"].strip() == "0.485, 0.456, 0.406"
    assert rows["settings.queue_images"].strip() == "512"
