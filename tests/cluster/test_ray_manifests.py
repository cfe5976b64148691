"""Ray reads the files for `serve deploy` and KubeRay, and the application takes their arguments."""

from __future__ import annotations

from typing import Any

import pytest
import ray as installed

from tests.docker.test_ray_manifests import CONFIGS, SERVICE


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_accepts_the_configuration(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from service.cluster.serve import ReplicaOptions, app

    parsed = ServeDeploySchema.model_validate(CONFIGS[name])
    [application] = parsed.applications
    options = ReplicaOptions.model_validate(application.args)
    assert app(options)


def test_the_cluster_has_the_version_of_ray_that_is_tested() -> None:
    assert SERVICE["spec"]["rayClusterConfig"]["rayVersion"] == installed.__version__


def test_limits_do_not_starve_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's default of 5 requests at a time would leave batches half empty."""
    from service.cluster import serve

    deployed: dict[str, Any] = {}

    class Deployment:
        def bind(self) -> None:
            pass

    def deployment(cls: type, **options: Any) -> Deployment:
        deployed.update(options)
        return Deployment()

    monkeypatch.setattr(serve.serve, "deployment", deployment)
    for options, lanes, batch in (({"num_cpus": 4}, 4, 16), ({"num_gpus": 0.5}, 2, 64)):
        serve.app(serve.ReplicaOptions(**options))
        assert deployed["max_ongoing_requests"] >= 2 * lanes * batch
        assert deployed["autoscaling_config"]["target_ongoing_requests"] == lanes * batch
        assert deployed["ray_actor_options"]["num_gpus"] == options.get("num_gpus", 0)
    assert deployed["graceful_shutdown_timeout_s"] == 35
