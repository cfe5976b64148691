"""An attack ends, however it waits."""

import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = """
import subprocess, sys, threading
from tests.attacks import time_limit

time_limit.GRACE_S = float(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
time_limit.end_after(minutes=0.01)
"""


@pytest.mark.live
@pytest.mark.parametrize(
    ("waiting", "grace_s"),
    [("threading.Event().wait()", 0.05), ("child.wait(); sys.exit(0)", 600)],
    ids=["for ever", "for what it has started"],
)
def test_an_attack_that_waits_too_long_fails_and_ends_what_it_has_started(waiting: str, grace_s: float) -> None:
    command = [sys.executable, "-c", ATTACK + waiting, str(grace_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the attack has not ended after 0.01 minutes" in done.stderr and "threading.py" in done.stderr
    status = Path(f"/proc/{done.stdout.strip()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()  # nobody may have collected it yet
