"""Commands in processes of their own, which stand still at a known place: there a test may kill them."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping

SECONDS = 300
"""A command that has not come to that place by then is killed."""

PROGRAM = """
import importlib, sys, time

module, owner, method, calls = sys.argv[1:5]
owner = getattr(importlib.import_module(module), owner)
call, left = getattr(owner, method), int(calls)

def hold(*arguments, **options):
    global left
    result = call(*arguments, **options)
    left -= 1
    if not left:
        print("held", flush=True)
        time.sleep(3600)
    return result

setattr(owner, method, hold)
from service.cli.main import main
main(sys.argv[5:])
"""


def start_and_hold(
    method: str, calls: int, *words: object, environment: Mapping[str, str] | None = None, prelude: str = ""
) -> subprocess.Popen[str]:
    """Starts `mae words…`, and returns once it stands still: after the last one of `calls` calls of a method.

    Args:
        method: the module, the class and the method, as in "package.module.Class.method".
        calls: number of calls.
        words: the command and its arguments.
        environment: all variables of the process; by default, those of this one.
        prelude: code that runs first.
    """
    command = [sys.executable, "-c", prelude + PROGRAM, *method.rsplit(".", 2), str(calls), *map(str, words)]
    variables = os.environ if environment is None else environment
    process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    limit = threading.Timer(SECONDS, process.kill)
    limit.start()
    try:
        lines = []
        for line in process.stdout:
            if line == "held\n":
                return process
            lines.append(line)
    finally:
        limit.cancel()
    process.wait()
    raise AssertionError(f"it has ended with {process.returncode}, without that call:\n" + "".join(lines))
