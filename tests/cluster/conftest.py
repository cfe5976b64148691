"""Tests of what runs on a cluster, or needs packages that are too heavy for the suite's own environment.

They have one of their own (`make test-cluster`). A file is collected where its package is installed, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
REQUIRED = {"ray": "test_ray_*", "moto": "test_collections*"}
"""The files of this folder that need a package."""
collect_ignore_glob = [files for package, files in REQUIRED.items() if find_spec(package) is None]


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """Ray with a cluster of this machine alone: two CPUs, whatever the machine has. It ends with the tests."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=2**28, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()
