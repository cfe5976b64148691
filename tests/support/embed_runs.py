"""Runs of `mae embed` over the golden images, in processes that can be killed."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support.command_line import SCRIPT

NAMES = [f"squares/{index}.png" for index in range(8)]


def make_copies(squares: Path, each: int) -> None:
    """Makes the folder `many` with `each` copies of every golden image."""
    Path("many").mkdir()
    for source in squares.iterdir():
        for copy in range(each):
            os.link(source, f"many/{source.stem}-{copy:03}.png")


def start_and_wait(output: str, environment: Mapping[str, str], records: int) -> subprocess.Popen[bytes]:
    """A run over `many`, which has stored at least `records` records and goes on: slowly, for a busy machine's sake."""
    command, slow = [SCRIPT, "embed", "many", "-o", output], {**environment, "MAE_LANES": "1"}
    process = subprocess.Popen(command, env=slow, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    journal, end = Path(f"{output}.partial/journal"), time.monotonic() + 60  # or out/.partial
    while not journal.exists() or journal.stat().st_size < 1000 * records:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    return process
