"""The state that probes read, and what its listeners learn of it."""

import logging
import threading

import pytest

from service.lifecycle.state import ServiceState


def test_listeners_learn_of_every_change() -> None:
    state, seen = ServiceState(), []
    state.subscribe(lambda: seen.append((state.current, state.progress, state.exit_code)))
    state.report("compiling")
    state.change("ready")
    state.change("draining", "leaving")
    state.exit(0)
    assert seen == [
        ("loading", "compiling", None),
        ("ready", "compiling", None),
        ("draining", "leaving", None),
        ("draining", "leaving", 0),
    ]


def test_a_step_of_loading_may_be_reported_from_another_thread(caplog: pytest.LogCaptureFixture) -> None:
    state, threads = ServiceState(), []
    state.subscribe(lambda: threads.append(threading.current_thread().name))
    with caplog.at_level(logging.INFO):
        reporter = threading.Thread(target=state.report, args=("compiling",), name="load")
        reporter.start()
        reporter.join()
    assert state.progress == "compiling" and "compiling" in caplog.text and threads == ["load"]


def test_a_failure_says_why_and_ends_the_process_with_1(caplog: pytest.LogCaptureFixture) -> None:
    state = ServiceState()
    state.fail("the GPU has gone")
    assert (state.current, state.progress, state.exit_code) == ("lost", "the GPU has gone", 1)
    assert "the GPU has gone" in caplog.text


def test_a_failure_stays_a_failure_when_a_drain_ends_after_it() -> None:
    state = ServiceState()
    state.exit(1)
    state.exit(0)
    assert state.exit_code == 1
