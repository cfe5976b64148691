"""The sizing page shows what its script computes, from figures that the page of benchmarks has."""

import re
from pathlib import Path

import pytest

from tests.benchmarks.fleet import CPU_POD, GPU_POD, scenarios
from tests.benchmarks.sizing import REPLICAS, Replica, machine_hours, online, rounded, tables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docker" / "SIZING.md").read_text()


def test_the_page_has_the_tables_as_they_are_computed() -> None:
    assert "\n".join(tables()) in PAGE


def test_the_page_has_a_row_for_every_scenario() -> None:
    rows = re.findall(r"^\| ((?:steady|day|burst)[^|]*) \|", PAGE, re.MULTILINE)
    assert rows == [scenario.name for scenario in scenarios()]


def test_the_throughputs_are_those_that_were_measured() -> None:
    figures = (ROOT / "service" / "benchmark" / "README.md").read_text()
    precisions = re.search(r"fp32 ([\d.]+), bf16 ([\d.]+), int8 ([\d.]+) .*fp32 ([\d.]+), int8 ([\d.]+) ", figures)
    assert precisions
    gpu = re.search(r"^\| 8 \| ([\d,]+) ", figures, re.MULTILINE)
    assert gpu
    measured = [*map(float, precisions.groups()), float(gpu[1].replace(",", ""))]
    assert [replica.images_per_s for replica in REPLICAS] == pytest.approx(measured, rel=0.002)
    assert CPU_POD.images_per_s == pytest.approx(measured[0], rel=0.002)
    assert GPU_POD.images_per_s == pytest.approx(measured[-1])


def test_replicas_and_hours_by_hand() -> None:
    replica = Replica("one", images_per_s=100, cores=4, gpus=0, memory_gib=2)
    assert [online(rate, replica) for rate in (1, 140, 141, 7000)] == [2, 2, 3, 100]
    assert machine_hours(3_600_000, replica) == pytest.approx(10)
    assert [rounded(number) for number in (0.0962, 1.54, 9.99, 27.44, 97_500)] == [
        "0.096",
        "1.5",
        "10.0",
        "27.4",
        "97,500",
    ]
