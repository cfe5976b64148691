"""The results as they come: each row is appended to two files and flushed, so that a cut loses none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HEAD = f"{'step':<12} {'what':<70} {'per s':>9} {'p50 ms':>9} {'roofline':>9} {'share':>6} {'core-ms':>8}  note\n"


@dataclass(frozen=True)
class Row:
    """One line of the table. A figure that was not measured, or means nothing here, is None."""

    step: str
    what: str
    per_s: float | None = None
    """Images (or crops) per second."""
    p50_ms: float | None = None
    """Median milliseconds of a batch or a request."""
    roofline_per_s: float | None = None
    """The throughput that the device's measured peak allows."""
    core_ms: float | None = None
    """CPU milliseconds per image."""
    note: str = ""
    failed: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    """Further figures, for rows.jsonl alone."""

    def line(self) -> str:
        """The row as a line of the table."""
        share = None if self.per_s is None or not self.roofline_per_s else self.per_s / self.roofline_per_s
        cells = f"{self.step:<12} {self.what:<70} {_number(self.per_s):>9} {_number(self.p50_ms):>9} "
        cells += f"{_number(self.roofline_per_s):>9} {_number(share):>6} {_number(self.core_ms):>8}  "
        return f"{cells}{'FAILED: ' * self.failed}{self.note}".rstrip() + "\n"


class Report:
    """The files of results in one folder; several processes may append to them."""

    def __init__(self, folder: Path) -> None:
        """Reports to `folder`, which exists."""
        self.folder = folder
        self.rows = folder / "rows.jsonl"
        self.table = folder / "table.txt"

    def begin(self) -> None:
        """Writes the head of the table."""
        _append(self.table, HEAD)
        _append(self.rows, "")

    def plan(self, step: str, names: Sequence[str]) -> None:
        """Records what a step will measure, so that what a cut leaves out can be named."""
        _append(self.rows, json.dumps({"step": step, "planned": list(names)}) + "\n")

    def add(self, row: Row, in_table: bool = True) -> None:
        """Appends a row, and prints it if it belongs to the table."""
        _append(self.rows, json.dumps({**asdict(row), "time": round(time.time(), 3)}) + "\n")
        if in_table:
            _append(self.table, row.line())
            print(row.line(), end="", flush=True)

    def missing(self, step: str) -> list[str]:
        """What the step had planned and has no row of."""
        planned: list[str] = []
        done = set()
        for entry in self.read():
            if entry["step"] == step:
                planned += entry.get("planned", [])
                done.add(entry.get("what"))
        return [name for name in planned if name not in done]

    def read(self) -> Iterator[dict[str, Any]]:
        """All plans and rows so far; a line that a cut left unfinished is passed over."""
        for line in self.rows.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)

    def failures(self) -> list[str]:
        """The rows that failed."""
        return [f"{entry['step']}: {entry['what']}" for entry in self.read() if entry.get("failed")]


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:  # closed after each line, so nothing waits in a buffer
        file.write(text)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
