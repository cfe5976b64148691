"""CPUs that processes of one machine claim, each for itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cluster import cpus
from service.cluster.cpus import ClaimedCPUs


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """A machine of four CPUs; the sets of CPUs that this process was restricted to."""
    restricted: list[set[int]] = []
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(cpus.os, "sched_setaffinity", lambda pid, wanted: restricted.append(set(wanted)))
    return restricted


def test_no_two_engines_get_the_same_cpu(affinity: list[set[int]], tmp_path: Path) -> None:
    first, second = ClaimedCPUs(1, tmp_path), ClaimedCPUs(1.5, tmp_path)
    assert affinity == [first.cpus, second.cpus]
    assert (len(first.cpus), len(second.cpus)) == (1, 2)
    assert not first.cpus & second.cpus


def test_where_too_few_are_free_nothing_is_restricted_or_taken(affinity: list[set[int]], tmp_path: Path) -> None:
    first = ClaimedCPUs(3, tmp_path)
    assert ClaimedCPUs(2, tmp_path).cpus == frozenset()
    assert affinity == [first.cpus]
    assert len(ClaimedCPUs(1, tmp_path).cpus) == 1  # what the second one tried was given back


@pytest.mark.parametrize("count", [0, 4, 8])
def test_all_cpus_need_no_claim(affinity: list[set[int]], tmp_path: Path, count: int) -> None:
    assert ClaimedCPUs(count, tmp_path).cpus == frozenset()
    assert affinity == []


def test_released_cpus_can_be_claimed_again(affinity: list[set[int]], tmp_path: Path) -> None:
    first = ClaimedCPUs(3, tmp_path)
    first.release()
    assert ClaimedCPUs(3, tmp_path).cpus == first.cpus


@pytest.mark.live
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU cannot be shared out")
def test_a_process_that_ends_gives_its_cpus_back_and_counts_those_that_it_has(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from service.cluster.cpus import ClaimedCPUs;"
        "from model.engines.cpu import available_cpus;"
        "claimed = ClaimedCPUs(1, Path(sys.argv[1])); print(*claimed.cpus, available_cpus())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert outputs == {f"{min(os.sched_getaffinity(0))} 1\n"}
