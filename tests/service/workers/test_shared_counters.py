"""The limits of all workers together, whichever of them dies."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.inference.limits import IMAGE
from service.settings import Settings
from service.workers.shared_counters import Column, SharedBudget, SharedCounters, shared_budgets

TAKER = """
import sys
from service.workers.shared_counters import Column, SharedCounters, SharedBudget
counters = SharedCounters(int(sys.argv[1]), 2)
budget = SharedBudget(counters, int(sys.argv[2]), Column.BYTES, 500)
print(sum(budget.take(1) for _ in range(2000)))
"""
KEY_TAKER = """
import sys
from service.settings import Settings
from service.workers.shared_counters import SharedCounters, shared_budgets
settings = Settings(http_workers=2, api_keys="one,two", key_max_requests=300, key_images_per_s=1e-3, max_images=500)
counters = SharedCounters(int(sys.argv[1]), 2, 2)
key = shared_budgets(settings, counters, int(sys.argv[2])).keys["two"]
print(sum(key.requests.take(1) for _ in range(1000)), sum(key.images.take(1) == 0 for _ in range(1000)))
"""
HOLDER = """
import sys, time
from service.workers.shared_counters import SharedCounters
counters = SharedCounters(int(sys.argv[1]), 2)
with counters.locked():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def counters():
    counters = SharedCounters.create(2)
    yield counters
    counters.close()


def other_process(code: str, counters: SharedCounters, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, str(counters.fd), *arguments]
    return subprocess.Popen(command, pass_fds=[counters.fd], stdout=subprocess.PIPE, text=True)


def test_the_limit_holds_for_all_workers_together(counters: SharedCounters) -> None:
    first, second = (SharedBudget(counters, worker_index, Column.BYTES, 10) for worker_index in range(2))
    assert first.take(6) and not second.take(5) and second.take(4) and not first.take(1)
    assert first.used == second.used == 10
    first.give(6)
    assert second.used == 4 and second.take(6)


def test_images_that_left_the_queue_make_room(counters: SharedCounters) -> None:
    first, second = (
        SharedBudget(counters, worker_index, Column.ADMITTED, 4, released=Column.RELEASED) for worker_index in range(2)
    )
    assert first.take(4) and not second.take(1)
    counters.add(0, Column.RELEASED, 3)
    assert first.used == 1 and second.take(3) and not first.take(1)


def test_without_a_limit_a_budget_only_counts(counters: SharedCounters) -> None:
    budget = SharedBudget(counters, 1, Column.REQUESTS)
    assert budget.limit is None and all(budget.take(1) for _ in range(1000)) and budget.used == 1000


def test_a_cleared_worker_holds_nothing(counters: SharedCounters) -> None:
    first, second = (SharedBudget(counters, worker_index, Column.BYTES, 10) for worker_index in range(2))
    assert first.take(6) and second.take(3)
    counters.clear(0)
    assert second.used == 3 and second.take(7)


@pytest.mark.live
def test_processes_that_take_at_the_same_time_take_no_more_than_the_limit(counters: SharedCounters) -> None:
    takers = [other_process(TAKER, counters, str(worker_index)) for worker_index in range(2)]
    assert sum(int(taker.communicate(timeout=60)[0]) for taker in takers) == 500
    assert counters.total(Column.BYTES) == 500


@pytest.mark.live
def test_the_lock_is_released_when_its_holder_dies(counters: SharedCounters) -> None:
    holder = other_process(HOLDER, counters)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(SharedBudget(counters, 0, Column.BYTES, 10).take, 1)
        with pytest.raises(TimeoutError):
            taken.result(0.1)
        holder.send_signal(signal.SIGKILL)
        assert taken.result(5)
    holder.communicate()


def test_limits_of_the_settings_hold_for_all_workers_together(counters: SharedCounters) -> None:
    settings = Settings(http_workers=2, max_inflight_mb=1, max_body_mb=1, queue_images=4)
    first, second = (shared_budgets(settings, counters, worker_index) for worker_index in range(2))
    assert first.bodies.take(600_000) and not second.bodies.take(400_001) and second.bodies.take(400_000)
    assert first.requests.take(1) and second.requests.take(1) and first.requests.used == 2
    assert first.images.take(3 * IMAGE) and not second.images.take(2 * IMAGE)
    counters.add(0, Column.RELEASED, IMAGE)
    assert second.images.take(2 * IMAGE) and first.images.used == 4 * IMAGE


@pytest.mark.live
def test_processes_that_serve_one_key_at_the_same_time_give_it_no_more_than_its_limits() -> None:
    counters = SharedCounters.create(2, 2)
    takers = [other_process(KEY_TAKER, counters, str(worker_index)) for worker_index in range(2)]
    taken = [[int(count) for count in taker.communicate(timeout=60)[0].split()] for taker in takers]
    assert [sum(counts) for counts in zip(*taken, strict=True)] == [300, 500]
    settings = Settings(http_workers=2, api_keys="one,two", key_max_requests=300, key_images_per_s=1)
    other, same = (shared_budgets(settings, counters, 0).keys[key] for key in ("one", "two"))
    assert other.requests.used == 0 and same.requests.used == 300
    assert other.images and not other.images.take(1)
    counters.clear(0)
    counters.clear(1)
    assert same.requests.used == 0  # what dead workers had in flight
    counters.close()
