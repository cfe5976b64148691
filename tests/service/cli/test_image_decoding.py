"""The processes that decode images."""

import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PARENT = """
import os, time
from model.config import PRESETS, Preprocessing
from service.cli.image_decoding import DecoderSettings, decode_in_process, open_decoders

if __name__ == "__main__":
    settings = DecoderSettings(PRESETS["mae_tiny"], Preprocessing(), 10**8, 10**9)
    pool, _ = open_decoders(settings, 1, 1)
    pool.submit(decode_in_process, []).result()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.live
def test_processes_that_decode_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    # All processes below have the pipe's other end open: it is read to its end when the last one has ended.
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(60) == -signal.SIGKILL
        assert select.select([parent.stdout], [], [], 60)[0], "a process still runs"
        assert parent.stdout.read() == b""
