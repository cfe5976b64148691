"""Tests of what runs on a cluster, or needs packages that are too heavy for the suite's own environment.

They have one of their own (`make test-cluster`). A file is collected where its package is installed, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
REQUIRED = {"ray": "test_ray_*", "moto": "test_collections*", "timm": "test_timm*", "onnxruntime": "test_onnx*"}
"""The files of this folder that need a package."""


def _is_installed(package: str) -> bool:
    try:
        version(package)  # not find_spec, which takes a folder of that name on the path for the package
    except PackageNotFoundError:
        return False
    return True


collect_ignore_glob = [files for package, files in REQUIRED.items() if not _is_installed(package)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.match("tests/cluster/test_ray_*"):
            # Ray warns of what pydantic will not have one day, and leaves sockets open.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def ray(probe: Path, engine_cache: Path) -> Iterator[Any]:
    """Ray with a cluster of this machine alone: two CPUs, whatever the machine has. It ends with the tests.

    Its processes have settings for the probe model in float32. They report their metrics every second.
    """
    import ray

    settings = {"WEIGHTS": probe, "ENGINE_CACHE": engine_cache, "PRECISION": "fp32", "MAX_BATCH": 4}
    variables = {f"MAE_{name}": str(value) for name, value in settings.items()}
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=2**28,
        log_to_driver=False,
        runtime_env={"env_vars": {**variables, "PYTHONPATH": str(ROOT)}},
        _system_config={"metrics_report_interval_ms": 1000},
    )
    try:
        yield ray
    finally:
        ray.shutdown()
