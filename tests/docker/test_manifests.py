"""What compose.yaml and the manifests for Kubernetes and KServe say agrees with what the service does.

docker/check_manifests.sh holds those of Kubernetes and KEDA to their schemas, and tests/clients/test_kserve.py those of
KServe.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.inference.batch_scheduler import LAST_BATCH_S
from service.settings import Settings

DOCKER = Path(__file__).parents[2] / "docker"
KUBERNETES = DOCKER / "kubernetes"
METRICS = set(re.findall(r"^(mae_\w+) ", (DOCKER.parent / "tests/data/public_contract.txt").read_text(), re.MULTILINE))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DRAIN_S = Settings.model_fields["drain_timeout_s"].default + LAST_BATCH_S


def read(path: str) -> Any:
    return yaml.safe_load((KUBERNETES / path).read_text())


def pod() -> Any:
    return read("base/deployment.yaml")["spec"]["template"]["spec"]


def container() -> Any:
    [found] = pod()["containers"]
    return found


@pytest.mark.live
def test_compose_fits_the_schema_of_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DOCKER / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_profile_starts_its_own_variant_and_the_monitoring() -> None:
    started = {
        profile: {name for name, service in COMPOSE["services"].items() if profile in service["profiles"]}
        for profile in ("gpu", "cpu")
    }
    assert started == {"gpu": {"mae", "prometheus", "grafana"}, "cpu": {"mae-cpu", "prometheus", "grafana"}}
    for name, target in (("mae", "gpu"), ("mae-cpu", "cpu")):
        assert COMPOSE["services"][name]["build"]["target"] == target


def test_only_the_gpu_variant_asks_for_a_gpu() -> None:
    [device] = COMPOSE["services"]["mae"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in COMPOSE["services"]["mae-cpu"]


def test_containers_can_change_nothing_but_their_volumes() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_no_container_can_take_the_hosts_memory() -> None:
    """The service's limits are those of its pods."""
    limits = {name: service["mem_limit"] for name, service in COMPOSE["services"].items()}
    for overlay, name in (("cpu/resources.yaml", "mae-cpu"), ("gpu/gpu.yaml", "mae")):
        [pod_container] = read(f"overlays/{overlay}")["spec"]["template"]["spec"]["containers"]
        gibibytes = pod_container["resources"]["limits"]["memory"].removesuffix("Gi")
        assert limits.pop(name) == f"${{MEMORY_LIMIT:-{gibibytes}g}}"
    assert limits == {"prometheus": "1g", "grafana": "512m"}


def test_images_of_others_are_pinned_and_only_the_service_is_open_to_the_network() -> None:
    for name in ("prometheus", "grafana"):
        service = COMPOSE["services"][name]
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_there_is_time_for_the_drain() -> None:
    for name in ("mae", "mae-cpu"):
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > DRAIN_S
    sleep = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep > 0
    assert pod()["terminationGracePeriodSeconds"] > sleep + DRAIN_S


def test_probes_ask_what_they_should() -> None:
    probes = {name: container()[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    [gpu] = read("overlays/gpu/gpu.yaml")["spec"]["template"]["spec"]["containers"]
    thresholds = probes["startup"]["failureThreshold"], gpu["startupProbe"]["failureThreshold"]
    assert [count * probes["startup"]["periodSeconds"] for count in thresholds] == [600, 1800]


def test_pods_have_no_rights_that_they_do_not_need() -> None:
    security = pod()["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    [engines] = read("overlays/cpu/resources.yaml")["spec"]["template"]["spec"]["initContainers"]
    for one in (container(), engines):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_what_is_mounted_is_there() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounts == {"cache": "/cache", "tmp": "/tmp", "weights": "/weights"}
    assert [volume["name"] for volume in pod()["volumes"]] == list(mounts)


def test_settings_are_settings() -> None:
    """One that is none would stop the start."""
    [settings] = read("base/kustomization.yaml")["configMapGenerator"]
    given = dict(literal.split("=") for literal in settings["literals"])
    given |= {variable["name"]: "" for variable in container()["env"]}
    assert {name.removeprefix("MAE_").lower() for name in given} <= set(Settings.model_fields)


def test_the_autoscaler_follows_the_queue_and_owns_the_replicas() -> None:
    base = read("components/autoscaling/autoscaler.yaml")["spec"]
    gpu = read("overlays/gpu/autoscaler.yaml")["spec"]
    [rule] = read("components/autoscaling/adapter-rule.yaml")["rules"]["custom"]
    for spec in (base, gpu):
        metric = spec["metrics"][0]
        assert metric["type"] == "Pods"
        assert rule["seriesQuery"].startswith(metric["pods"]["metric"]["name"] + "{")
        assert 0 < spec["minReplicas"] < spec["maxReplicas"]
    deployment = read("base/deployment.yaml")
    assert base["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize(
    ("resources", "autoscaler"),
    [
        ("overlays/cpu/resources.yaml", "components/autoscaling/autoscaler.yaml"),
        ("overlays/gpu/gpu.yaml", "overlays/gpu/autoscaler.yaml"),
    ],
)
def test_the_autoscaler_keeps_the_cores_below_70_percent(resources: str, autoscaler: str) -> None:
    [limited] = read(resources)["spec"]["template"]["spec"]["containers"]
    [_, metric] = read(autoscaler)["spec"]["metrics"]
    assert metric["resource"]["name"] == "cpu"
    target = metric["resource"]["target"]
    assert target == {
        "type": "AverageValue",
        "averageValue": f"{700 * int(limited['resources']['limits']['cpu'])}m",
    }


def test_a_gpu_that_waits_for_the_cpu_gets_help() -> None:
    """Where decoding is the bottleneck, no image waits for a batch and few lanes are busy: the cores tell the load."""
    [gpu] = read("overlays/gpu/gpu.yaml")["spec"]["template"]["spec"]["containers"]
    cores = int(gpu["resources"]["limits"]["cpu"])
    patches = {patch["path"]: patch["value"] for patch in read("overlays/gpu/scaled-object.yaml")}
    assert patches["/spec/triggers/1/name"] == triggers()[1]["name"] == "busy"
    assert f'container="{gpu["name"]}"' in patches["/spec/triggers/1/metadata/query"]
    assert float(patches["/spec/triggers/1/metadata/threshold"]) == 0.7 * cores
    assert {"name": "MAE_HTTP_WORKERS", "value": str(cores // 2)} in gpu["env"]


# --- KEDA


def scaled_object() -> Any:
    return read("components/keda/scaled-object.yaml")["spec"]


def triggers() -> Any:
    return scaled_object()["triggers"]


def test_keda_scales_what_the_other_autoscaler_does_within_the_same_bounds() -> None:
    spec, other = scaled_object(), read("components/autoscaling/autoscaler.yaml")["spec"]
    assert spec["scaleTargetRef"]["name"] == other["scaleTargetRef"]["name"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (other["minReplicas"], other["maxReplicas"])
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == other["behavior"]
    gpu = read("overlays/gpu/autoscaler.yaml")["spec"]
    patches = {patch["path"]: patch["value"] for patch in read("overlays/gpu/scaled-object.yaml")}
    bounds = patches["/spec/minReplicaCount"], patches["/spec/maxReplicaCount"]
    assert bounds == (gpu["minReplicas"], gpu["maxReplicas"])
    limits = [metric["pods"]["target"]["averageValue"] for metric in (other["metrics"][0], gpu["metrics"][0])]
    assert limits == [triggers()[0]["metadata"]["threshold"], patches["/spec/triggers/0/metadata/threshold"]]


def test_two_autoscalers_never_scale_the_same_pods() -> None:
    """An overlay names one, and if the other one is still in the cluster, KEDA takes it over by its name."""
    for overlay in ("cpu", "gpu"):
        components = {Path(path).name for path in read(f"overlays/{overlay}/kustomization.yaml")["components"]}
        assert len(components & {"autoscaling", "keda"}) == 1
    resource = read("components/keda/scaled-object.yaml")
    assert resource["metadata"]["annotations"] == {"scaledobject.keda.sh/transfer-hpa-ownership": "true"}
    config = resource["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert config["name"] == read("components/autoscaling/autoscaler.yaml")["metadata"]["name"]


def test_keda_has_a_fallback_for_every_trigger() -> None:
    """It has none for the types cpu and memory, nor for targets of the type Value. By default no data is 0 to it."""
    spec = scaled_object()
    assert set(spec["fallback"]) == {"failureThreshold", "replicas", "behavior"}
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    for trigger in triggers():
        assert set(trigger) == {"type", "name", "metricType", "metadata"}
        assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold", "ignoreNullValues"}
        assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_keda_and_kserve_ask_for_sums_of_metrics_that_there_are() -> None:
    """An AverageValue is divided by the number of pods, so a mean over the pods would be divided twice."""
    autoscaling = yaml.safe_load((DOCKER / "kserve" / "inference-service.yaml").read_text())["spec"]["predictor"]
    external = [metric["external"]["metric"] for metric in autoscaling["autoScaling"]["metrics"]]
    for query in [trigger["metadata"]["query"] for trigger in triggers()] + [metric["query"] for metric in external]:
        assert query.startswith("sum(")
        assert set(re.findall(r"mae_\w+", query)) <= METRICS


# --- KServe


def runtime() -> Any:
    return yaml.safe_load((DOCKER / "kserve" / "runtime.yaml").read_text())["spec"]


def test_kserves_container_is_that_of_kubernetes() -> None:
    [kserve] = runtime()["containers"]
    own = container()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert {**kserve[probe], "httpGet": None} == {**own[probe], "httpGet": None}, probe
        assert kserve[probe]["httpGet"]["port"] == kserve["ports"][0]["containerPort"]
    assert kserve["securityContext"] == own["securityContext"] | {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert kserve["lifecycle"] == own["lifecycle"]
    mounts = {mount["name"]: mount["mountPath"] for mount in kserve["volumeMounts"]}
    assert sorted(mounts.values()) == ["/cache", "/tmp"]  # KServe adds /mnt/models
    assert {volume["name"]: set(volume) for volume in runtime()["volumes"]} == {
        name: {"name", "emptyDir"} for name in mounts
    }
    assert {variable["name"].removeprefix("MAE_").lower() for variable in kserve["env"]} <= set(Settings.model_fields)


def test_kserve_waits_for_the_drain_and_finds_the_metrics() -> None:
    predictor = yaml.safe_load((DOCKER / "kserve" / "inference-service.yaml").read_text())["spec"]["predictor"]
    [kserve] = runtime()["containers"]
    assert predictor["terminationGracePeriodSeconds"] > kserve["lifecycle"]["preStop"]["sleep"]["seconds"] + DRAIN_S
    port = str(kserve["ports"][0]["containerPort"])
    assert runtime()["annotations"] == {"prometheus.kserve.io/port": port, "prometheus.kserve.io/path": "/metrics"}
    formats = {one["name"] for one in runtime()["supportedModelFormats"]}
    assert predictor["model"]["modelFormat"]["name"] in formats
    assert predictor["model"]["protocolVersion"] in runtime()["protocolVersions"]


def test_the_disruption_budget_and_the_spread_mean_these_pods() -> None:
    [labels] = read("base/kustomization.yaml")["labels"]
    [spread] = pod()["topologySpreadConstraints"]
    assert read("base/disruption.yaml")["spec"]["selector"]["matchLabels"] == labels["pairs"]
    assert spread["labelSelector"]["matchLabels"] == labels["pairs"]


def test_prometheus_finds_the_pods() -> None:
    monitor = read("components/prometheus-operator/service-monitor.yaml")
    [labels] = read("base/kustomization.yaml")["labels"]
    [port] = read("base/service.yaml")["spec"]["ports"]
    [endpoint] = monitor["spec"]["endpoints"]
    assert monitor["spec"]["selector"]["matchLabels"] == labels["pairs"]
    assert labels["pairs"][monitor["spec"]["jobLabel"]] == "mae"  # the job of rules.yml
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    assert port["targetPort"] in {one["name"] for one in container()["ports"]}
