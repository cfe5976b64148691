"""Engines that hang, in a batch or while they load, and processes that only seem to: stopped, or with a tenth of a CPU.

.venv/bin/python -m tests.attacks.hangs    # 1 minute

The time after which a batch hangs is 3 s here in place of 30 s. A tenth of a CPU is given by SIGSTOP and SIGCONT, as
cpulimit does, and by a cgroup of version 1 where this process may make one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.attacks.cgroups import ROOT, make_group
from tests.attacks.server import AttackedServer, describe, report, serve
from tests.attacks.time_limit import end_after
from tests.support.clients import grey
from tests.support.fake_server import POISON

LIMIT_S = 3.0
HANGS = {"FAKE_HANG_LEAST_S": str(LIMIT_S)}
EXIT_S = 10.0


def ask(server: AttackedServer, shade: int) -> str:
    """The status of an answer, with the code of an error; and whether it came later than a batch may take."""
    begin = time.monotonic()
    answer = httpx.post(f"{server.url}/embed", content=grey(shade), timeout=120)
    late = " after the limit" if answer.status_code == 200 and time.monotonic() - begin > LIMIT_S else ""
    return describe(answer) + late


def attack_hang(workers: int, seen: Counter[str]) -> None:
    """A batch that never returns, and eight requests that wait behind it."""
    fake = {**HANGS, "FAKE": "hangs"}
    with serve(fake=fake, http_workers=workers, max_batch=1) as server, ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(ask, server, POISON)]
        while not (server.metric("mae_lanes_busy") or asked[0].done()):
            time.sleep(0.05)
        asked += [pool.submit(ask, server, shade) for shade in range(8)]
        seen.update(f"hang: {request.result()}" for request in asked)
        begin = time.monotonic()
        seen[f"hang: /livez {httpx.get(f'{server.url}/livez', timeout=10).status_code}"] += 1
        code = server.process.wait(60)
        late = " late" if time.monotonic() - begin > EXIT_S else ""
        seen[f"hang: exit code {code}{late}"] += 1


def attack_stop(seen: Counter[str]) -> None:
    """A process that is stopped for 10 s while a batch of 2 s runs."""
    with serve(fake={**HANGS, "FAKE_S": "2"}) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, 5)
        time.sleep(1)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(10)
        server.process.send_signal(signal.SIGCONT)
        count(server, "stopped", asked.result(), seen)


def attack_duty_cycle(seen: Counter[str]) -> None:
    """A process that runs for 10 ms of every 100 ms while a batch of 8 s runs."""
    with serve(fake={**HANGS, "FAKE_S": "8"}) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server, 5)
        time.sleep(0.5)
        with throttle_by_signals(server.process.pid):
            answer = asked.result()
        count(server, "stopped nine tenths of the time", answer, seen)


def attack_cgroup(seen: Counter[str]) -> None:
    """A process with a tenth of a CPU, while a batch computes for 0.6 s of CPU time."""
    fake = {**HANGS, "FAKE": "burns", "FAKE_S": "0.6"}
    with serve(fake=fake) as server, throttle_by_cgroup(server.process.pid) as throttled:
        if throttled:
            count(server, "cgroup", ask(server, 5), seen)
            seen[f"cgroup: {server.metric('mae_slow_batches_total'):.0f} slow"] += 1
        else:
            seen["cgroup: not tried, for want of permission"] += 1


def attack_load(workers: int, seen: Counter[str]) -> None:
    """An engine that is never loaded."""
    variables = {"FAKE_LOAD_S": "100000", "MAE_LOAD_TIMEOUT_S": "2", "MAE_HOST": "127.0.0.1", "MAE_PORT": "0"}
    environment = os.environ | variables | {"MAE_HTTP_WORKERS": str(workers)}
    command = [sys.executable, "-m", "tests.support.fake_server"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    named = "names the step" if "(LOAD_TIMEOUT_S): pretending to build" in done.stderr else "names no step"
    seen[f"load: exit code {done.returncode}, {named}"] += 1


EMBED = """
import sys
from model.engines import build
from model.engines.base import ServedModel
from service.cli.main import main
from service.inference import watchdog
from tests.support.fake_server import FailingEngine

kind, watchdog.HANG_LEAST_S = sys.argv[1], float(sys.argv[2])
build.build = lambda *_: ServedModel(FailingEngine(kind, 0.001, 4))
main(sys.argv[3:])
"""


def attack_embed(seen: Counter[str]) -> None:
    """`mae embed`, of which a batch never returns, and the same command once more with an engine that works."""
    with tempfile.TemporaryDirectory(prefix="mae-attack-") as name:
        folder = Path(name, "greys")
        folder.mkdir()
        for shade in (*range(11), POISON):
            (folder / f"{shade:03}.png").write_bytes(grey(shade))
        for kind in ("hangs", "works"):
            command = [sys.executable, "-c", EMBED, kind, str(LIMIT_S), "embed", str(folder), "-o", f"{name}/out/"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            print(done.stderr, file=sys.stderr)
            last = done.stderr.strip().rsplit("\n", 1)[-1]
            counts = re.fullmatch(r"mae: (\d+) embedded, (\d+) already stored, 0 skipped: .*", last)
            said = "says so" if " hangs: a batch of 4 for embed" in last else last
            said = "12 rows" if counts and int(counts[1]) + int(counts[2]) == 12 else said
            seen[f"mae embed: exit code {done.returncode}, {said}"] += 1


def count(server: AttackedServer, what: str, answer: str, seen: Counter[str]) -> None:
    seen[f"{what}: {answer}"] += 1
    seen[f"{what}: /livez {httpx.get(f'{server.url}/livez', timeout=30).status_code}"] += 1


@contextmanager
def throttle_by_signals(process: int) -> Iterator[None]:
    """Lets a process run for 10 ms of every 100 ms."""
    ended = threading.Event()

    def throttle() -> None:
        while not ended.is_set():
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.09)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.01)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def throttle_by_cgroup(process: int) -> Iterator[bool]:
    """Gives a process a tenth of a CPU by a cgroup of version 1; yields whether that was allowed."""
    with make_group(ROOT / "cpu/mae-attack") as group:
        if group is None:
            yield False
            return
        try:
            (group / "cpu.cfs_quota_us").write_text("10000")
            (group / "cgroup.procs").write_text(str(process))
            yield True
        finally:
            (group.parent / "cgroup.procs").write_text(str(process))


EXPECTED = {
    "hang: 503 engine_lost",
    "hang: /livez 503",
    "hang: exit code 1",
    "load: exit code 1, names the step",
    "mae embed: exit code 2, says so",
    "mae embed: exit code 0, 12 rows",
    "stopped: 200 after the limit",
    "stopped: /livez 200",
    "stopped nine tenths of the time: 200 after the limit",
    "stopped nine tenths of the time: /livez 200",
    "cgroup: 200 after the limit",
    "cgroup: /livez 200",
    "cgroup: 1 slow",
    "cgroup: not tried, for want of permission",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=10)
    seen: Counter[str] = Counter()
    for workers in (0, 2):
        attack_hang(workers, seen)
        attack_load(workers, seen)
    attack_embed(seen)
    attack_stop(seen)
    attack_duty_cycle(seen)
    attack_cgroup(seen)
    return report("hangs", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
