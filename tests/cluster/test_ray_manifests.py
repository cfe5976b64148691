"""Ray reads the files for `serve deploy` and KubeRay, and the application takes their arguments."""

from __future__ import annotations

from typing import Any

import pytest
import ray as installed
from pydantic import ValidationError

from tests.docker.test_ray_manifests import CONFIGS, SERVICE


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_accepts_the_configuration(name: str) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.schema import ServeDeploySchema

    from service.cluster.serve import app

    parsed = ServeDeploySchema.model_validate(CONFIGS[name])
    [application] = parsed.applications
    # As Serve builds it: whether the arguments come as a mapping or as a model is decided by the annotation.
    assert call_user_app_builder_with_args_if_necessary(app, application.args)


def test_serve_run_gives_text_and_mistakes_are_named() -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from service.cluster.serve import app

    assert call_user_app_builder_with_args_if_necessary(app, {"num_cpus": "2", "max_replicas": "4"})
    with pytest.raises(ValidationError, match="max_replica\n"):
        call_user_app_builder_with_args_if_necessary(app, {"max_replica": "4"})


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
