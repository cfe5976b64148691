"""What is bounded for all workers together, whoever of them dies."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.workers.shared_counters import Column, SharedBudget, SharedCounters

TAKER = """
import sys
from service.workers.shared_counters import Column, SharedCounters, SharedBudget
ledger = SharedCounters(int(sys.argv[1]), 2)
budget = SharedBudget(ledger, int(sys.argv[2]), Column.BYTES, 500)
print(sum(budget.take(1) for _ in range(2000)))
"""
HOLDER = """
import sys, time
from service.workers.shared_counters import SharedCounters
ledger = SharedCounters(int(sys.argv[1]), 2)
with ledger.locked():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def ledger():
    made = SharedCounters.create(2)
    yield made
    made.close()


def other_process(code: str, ledger: SharedCounters, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, str(ledger.fd), *arguments]
    return subprocess.Popen(command, pass_fds=[ledger.fd], stdout=subprocess.PIPE, text=True)


def test_the_bound_is_that_of_all_rows(ledger: SharedCounters) -> None:
    one, other = (SharedBudget(ledger, row, Column.BYTES, 10) for row in range(2))
    assert one.take(6) and not other.take(5) and other.take(4) and not one.take(1)
    assert one.used == other.used == 10
    one.give(6)
    assert other.used == 4 and other.take(6)


def test_what_left_makes_room(ledger: SharedCounters) -> None:
    one, other = (SharedBudget(ledger, row, Column.ADMITTED, 4, less=Column.LEFT) for row in range(2))
    assert one.take(4) and not other.take(1)
    ledger.add(0, Column.LEFT, 3)
    assert one.used == 1 and other.take(3) and not one.take(1)


def test_without_a_bound_it_only_counts(ledger: SharedCounters) -> None:
    budget = SharedBudget(ledger, 1, Column.REQUESTS)
    assert budget.limit is None and all(budget.take(1) for _ in range(1000)) and budget.used == 1000


def test_a_dead_worker_holds_nothing(ledger: SharedCounters) -> None:
    one, other = (SharedBudget(ledger, row, Column.BYTES, 10) for row in range(2))
    assert one.take(6) and other.take(3)
    ledger.clear(0)
    assert other.used == 3 and other.take(7)


@pytest.mark.live
def test_processes_that_take_at_once_take_no_more_than_there_is(ledger: SharedCounters) -> None:
    takers = [other_process(TAKER, ledger, str(row)) for row in range(2)]
    assert sum(int(taker.communicate(timeout=20)[0]) for taker in takers) == 500
    assert ledger.total(Column.BYTES) == 500


@pytest.mark.live
def test_who_takes_waits_for_who_is_taking_but_not_for_the_dead(ledger: SharedCounters) -> None:
    holder = other_process(HOLDER, ledger)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(SharedBudget(ledger, 0, Column.BYTES, 10).take, 1)
        with pytest.raises(TimeoutError):
            taken.result(0.1)
        holder.send_signal(signal.SIGKILL)
        assert taken.result(5)
    holder.communicate()
