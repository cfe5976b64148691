"""`mae embed --ray`: Ray Data gives the rows that `mae embed` gives without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.images.packs import read_image_file
from service.cli.errors import describe_file_error
from service.cli.local_pipeline import open_pipeline
from service.parameters import EmbedParameters
from service.settings import Settings


@pytest.fixture(scope="module")
def settings(ray: Any, probe: Path, engine_cache: Path) -> Settings:
    return Settings(weights=str(probe), engine_cache=engine_cache, precision="fp32", max_batch=4)


def test_rows(ray: Any, settings: Settings, tmp_path: Path) -> None:
    from service.cluster.data import EmbeddingJob, choose_resources, describe_engine, embed_paths

    data = Path("tests/data/chelsea.jpg").read_bytes()
    paths = []
    for n in range(100):
        p = tmp_path / f"{n}.jpg"
        p.write_bytes(data if n % 10 else b"nothing")
        paths.append(str(p))
    (tmp_path / "13.jpg").unlink()
    resources = choose_resources(settings)
    print(resources)
    info, heads = describe_engine(settings, resources)
    job = EmbeddingJob(settings, EmbedParameters(), read_image_file, describe_file_error, open_pipeline)
    rows = list(embed_paths(paths, info, job, resources))
    print([r[1] if isinstance(r[1], str) else r[1][:3] for r in rows[:15]])
    assert [r[0] for r in rows] == paths
