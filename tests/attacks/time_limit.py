"""A bound on the time of a whole attack, beside the bounds on its waits: attacks run without anybody who watches."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress

from tests.attacks.processes import family

GRACE_S = 60.0
"""What still runs so long after the limit is ended with the process."""


def end_after(minutes: float) -> None:
    """Ends this process with exit code 1 if it has not ended after `minutes`, however it waits.

    At the limit the stacks of all threads are written to standard error, and every process that the attack has started
    is killed. So waits for these end, and what the attack has made is removed. The process ends at the latest `GRACE_S`
    later.
    """

    def end() -> None:
        time.sleep(60 * minutes)
        print(f"the attack has not ended after {minutes:g} minutes", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        atexit.register(_fail)  # what the attack has counted by then does not matter
        for member in list(family(os.getpid()))[1:]:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(member, signal.SIGKILL)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=end, name="time limit", daemon=True).start()


def _fail() -> None:
    """Ends the process with exit code 1, whatever `main` has returned."""
    sys.stdout.flush()
    os._exit(1)
