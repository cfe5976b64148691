"""The manifests for Ray have the fields that Ray and KubeRay document, and what they say fits the code.

tests/cluster/test_ray_manifests.py lets Ray read them.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.inference.batch_scheduler import LAST_BATCH_S
from service.settings import PREFIX, Settings

FOLDER = Path(__file__).parents[2] / "docker" / "ray"
SERVICE = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
CONFIGS = {
    "serve.yaml": yaml.safe_load((FOLDER / "serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(SERVICE["spec"]["serveConfigV2"]),
}


def workers() -> Any:
    [group] = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group


@pytest.mark.parametrize("name", CONFIGS)
def test_the_application_is_that_of_the_service(name: str) -> None:
    [application] = CONFIGS[name]["applications"]
    assert (application["import_path"], application["route_prefix"]) == ("service.cluster.serve:app", "/")
    variables = application["runtime_env"]["env_vars"]
    assert {name.removeprefix(PREFIX).lower() for name in variables} <= set(Settings.model_fields)


def test_the_ray_service_has_the_fields_of_kuberay() -> None:
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    cluster = SERVICE["spec"]["rayClusterConfig"]
    assert {"headGroupSpec", "workerGroupSpecs", "rayVersion"} <= set(cluster)
    assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"} == set(workers())
    for group in (cluster["headGroupSpec"], workers()):
        [container] = group["template"]["spec"]["containers"]
        assert container["image"] == "mae-serve-ray"


def test_a_replica_fills_a_worker() -> None:
    [container] = workers()["template"]["spec"]["containers"]
    arguments = CONFIGS["rayservice.yaml"]["applications"][0]["args"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert float(container["resources"]["limits"]["cpu"]) == arguments["num_cpus"]
    assert workers()["maxReplicas"] == arguments["max_replicas"]


def test_there_is_time_for_the_drain() -> None:
    drain = Settings.model_fields["drain_timeout_s"].default + LAST_BATCH_S
    assert workers()["template"]["spec"]["terminationGracePeriodSeconds"] > drain
