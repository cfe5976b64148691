"""Mixed traffic with every fault in it, against a real server.

.venv/bin/python -m tests.attacks.soak --minutes 60 [--workers 2,0] [--json FILE] [--png FILE]    # as long as you say

Each number of HTTP workers has an equal part of the time, and a server that is not started again within it. The answers
are compared with those of the first server. The machine should have no other load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.attacks.client import Answer
from tests.attacks.server import report, serve
from tests.attacks.soak.faults import MAX_CONNECTIONS
from tests.attacks.soak.phase import Phase
from tests.attacks.soak.requests import KEY, ROOT, Request
from tests.attacks.soak.traffic import CHANGING, CUT_OFF, LATE, REFUSED, RIGHT, WITH_WORKER
from tests.attacks.time_limit import end_after

OVERLOADED = ("refused with Retry-After under overload", "lost with a killed worker")
EXPECTED = {
    RIGHT,
    CHANGING,
    REFUSED,
    LATE,
    CUT_OFF,
    WITH_WORKER,
    "requests of bursts",
    "stopped for 3 s",
    "worker killed and replaced",
    "exit code 0",
    "long file: 200",
    *(
        f"left {phase}"
        for phase in (
            "in the headers",
            "in the body",
            "behind the request",
            "while it waits",
            "behind four requests",
            "in the answer",
        )
    ),
    "silent connection: closed by the server",
    *(
        f"{fault}: {answer}"
        for fault, answers in {
            "stalled body": ("408 request_stalled",),
            "half headers": ("408 request_stalled",),
            "no key": ("401 unauthorized",),
            "wrong key": ("401 unauthorized",),
            "key in the query": ("401 unauthorized",),
            "long header": ("431 headers_too_large",),
            "many headers": ("431 headers_too_large",),
            "long target": ("414 uri_too_long",),
            "declared body": ("413 body_too_large",),
            "65 images": ("413 too_many_images",),
            "no Host": ("400 malformed_request",),
            "transfer coding": ("501 unsupported_transfer_coding",),
            "Content-Encoding": ("415 unsupported_media_type",),
            "Upgrade": ("200",),
            "malformed form": ("400 malformed_body",),
            "cut file": ("400 undecodable_image",),
            "costly file": ("200", "400 undecodable_image", "413 too_many_pixels", "504 deadline_passed"),
            "probe above the limit": ("200",),
        }.items()
        for answer in (*answers, *OVERLOADED)
    ),
}


def main() -> int:
    """Runs the phases; the exit code is 1 if anything unexpected was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of all servers together")
    parser.add_argument("--workers", default="2,0", help="HTTP workers of each phase, as in 2,0")
    parser.add_argument("--json", type=Path, help="where all that was measured is written")
    parser.add_argument("--png", type=Path, help="where it is drawn")
    arguments = parser.parse_args()
    end_after(minutes=15 + 1.2 * arguments.minutes)
    workers = [int(number) for number in arguments.workers.split(",")]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen: Counter[str] = Counter()
    phases: list[dict[str, Any]] = []
    result = {"minutes": arguments.minutes, **describe_run(), "phases": phases}
    recorded: dict[Request, Answer] = {}

    def save() -> None:
        if arguments.json:
            part = arguments.json.with_suffix(".part")
            part.write_text(json.dumps(result))
            part.replace(arguments.json)

    for number in workers:
        settings = {"http_workers": number, "api_keys": KEY, "max_connections": MAX_CONNECTIONS, "precision": "fp32"}
        with serve(real=True, **settings) as server:
            phase = Phase(server, number, 60 * arguments.minutes / len(workers), save)
            phases.append(phase.result)
            phase.result["seen"], phase.result["surprises"] = phase.soak.seen, phase.soak.differences
            try:
                asyncio.run(phase.run(recorded))
            except Exception:  # the other phases still run, and the verdict has it
                phase.soak.note("the run of a phase failed", traceback.format_exc())
            seen += phase.soak.seen
            print("\n".join(phase.soak.differences[:20]), file=sys.stderr, flush=True)
        save()
    code = report("soak", seen, EXPECTED)
    result["exit_code"] = code
    save()
    if arguments.png:
        from tests.attacks.soak.plot import plot

        plot(result, arguments.png)
    return code


def describe_run() -> dict[str, Any]:
    """The commit, the machine and the time."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    model = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    return {
        "commit": commit.stdout.strip(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "begin": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


if __name__ == "__main__":
    sys.exit(main())
