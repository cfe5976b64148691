"""The limit of time, in a process of its own: the suite's may hold packages that do not bear the alarm's signal."""

import subprocess
import sys
import textwrap

import pytest

WORK = """
    import signal, time
    from contextlib import suppress
    from model.benchmark.time_limit import TimeOver, limit_time

    before = signal.getsignal(signal.SIGALRM)
    with limit_time(None), limit_time(600):
        pass
    try:
        with limit_time(0.05):
            while True:
                with suppress(Exception):  # as a compiler does
                    time.sleep(0.01)
    except TimeOver:
        print("over", signal.getitimer(signal.ITIMER_REAL)[0], signal.getsignal(signal.SIGALRM) is before)
"""


@pytest.mark.live
def test_work_that_catches_every_exception_ends_at_the_limit() -> None:
    command = [sys.executable, "-c", textwrap.dedent(WORK)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "over 0.0 True\n"), ended.stderr
