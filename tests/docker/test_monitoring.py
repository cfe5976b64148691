"""The dashboard and the rules name metrics that the service has. (docker/check_monitoring.py runs them for real.)"""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import Metrics
from tests.support.metrics import families

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/mae-serve.json").read_text())
RULES = [
    rule for group in yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
# A machine without a GPU exports none of these.
GPU = {
    "mae_gpu_memory_used_bytes",
    "mae_gpu_memory_total_bytes",
    "mae_gpu_utilization_ratio",
    "mae_gpu_power_watts",
    "mae_gpu_temperature_celsius",
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def exported() -> set[str]:
    """The names of all samples that /metrics can have, those of labels not yet seen included."""
    found = families(Metrics().render()).values()
    return GPU | {family.name + suffix for family in found for suffix in SUFFIXES.get(family.type, ())}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (annotation["expr"] for annotation in DASHBOARD["annotations"]["list"])
    yield from (rule["expr"] for rule in RULES)
    adapter = yaml.safe_load((DOCKER / "kubernetes/components/autoscaling/adapter-rule.yaml").read_text())
    yield from (rule["seriesQuery"] for rule in adapter["rules"]["custom"])


def test_every_metric_that_is_asked_for_exists() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    found = {name for expr in expressions() for name in re.findall(r"(?<![\w:])(?:mae|process)_\w+", expr)}
    assert len(found) > 25  # or the pattern has stopped finding them
    assert found - exported() == set()
    named = {name for expr in expressions() for name in re.findall(r"\w+:\w+:\w+", expr)}
    assert named == recorded  # none is missing, and none is recorded for nobody


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()))
    names = families(Metrics().render())
    ours = {name for name in names if name.startswith("mae_")} | GPU
    assert {name for name in ours if not re.search(rf"\b{name}(_total|_bucket|_sum|_count)?\b", shown)} == set()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alerts_say_how_bad_and_what(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert set(alert["annotations"]) == {"summary", "description"}


def test_every_alert_has_a_test_of_its_own() -> None:
    text = (DOCKER / "prometheus/rules_test.yml").read_text()
    assert {alert["alert"] for alert in ALERTS if alert["alert"] not in text} == set()


def test_panels_have_their_own_number_and_their_own_place() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
        assert panel["type"] == "row" or panel["description"], panel["title"]
        names = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(names)) == len(names), panel["title"]
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    [source] = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/mae-serve.yml").read_text())["providers"]
    scraped = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    chosen, instance = DASHBOARD["templating"]["list"]
    assert (chosen["type"], chosen["current"]["value"]) == ("datasource", source["uid"])
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]  # or rates would be empty
    assert instance["query"]["query"] == "label_values(mae_ready, instance)"
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())}
    assert used == {"${datasource}"}
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    # The service by the alias that either variant has.
    [[target]] = [job["static_configs"][0]["targets"] for job in scraped["scrape_configs"] if job["job_name"] == "mae"]
    for name in ("mae", "mae-cpu"):
        assert services[name]["networks"]["default"]["aliases"] == [target.removesuffix(":8000")]
