"""Draws the samples of a soak as a PNG.

.venv/bin/python -m tests.attacks.soak.plot soak.json soak.png    # seconds
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, PANEL_HEIGHT = 1200, 132
LEFT, RIGHT, TOP, BOTTOM, GAP = 92, 24, 92, 64, 34
SCALE = 2
"""Everything is drawn larger by this, then made smaller: so lines are smooth."""
INK, FAINT, GRID, BACK, REST = "#1f2933", "#6b7785", "#e3e7ec", "#ffffff", "#eef3f8"
BLUE, ORANGE = "#2563a8", "#d9772b"
MARKED = {"kill": "#c0392b", "burst": "#d9772b", "stop": "#8e44ad", "silent connections": "#2e8b57"}
LABELS = {"kill": "worker killed", "burst": "burst at twice the capacity", "stop": "process stopped for 3 s"}
Point = tuple[float, float]
Series = tuple[str, str, list[Point]]


class Chart:
    """A picture of panels with one time axis; coordinates are in points of the finished picture."""

    def __init__(self, panels: int, end_s: float) -> None:
        height = TOP + panels * (PANEL_HEIGHT + GAP) - GAP + BOTTOM
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), BACK)
        self._draw = ImageDraw.Draw(self.image)
        self._end_s = end_s

    def text(self, at: Point, content: str, size: int = 15, fill: str = INK, anchor: str = "ls") -> float:
        """Writes; returns the width."""
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), content, fill, font, anchor)
        return float(font.getlength(content)) / SCALE

    def line(self, points: Sequence[Point], fill: str, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, fill, max(1, round(width * SCALE)), "curve")

    def box(self, left: float, top: float, right: float, bottom: float, fill: str) -> None:
        self._draw.rectangle([left * SCALE, top * SCALE, right * SCALE, bottom * SCALE], fill)

    def x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / self._end_s

    def panel(
        self, number: int, title: str, series: Sequence[Series], rests: Sequence[Point], is_log: bool = False
    ) -> None:
        """Draws the series of one panel; the axis begins at 0, or at a power of ten if it is logarithmic."""
        top = TOP + number * (PANEL_HEIGHT + GAP)
        bottom = top + PANEL_HEIGHT
        values = [value for _, _, points in series for _, value in points]
        ticks = _powers_of_ten(values) if is_log else _round_ticks(values)

        def y(value: float) -> float:
            low, high, at = (math.log10(max(1e-3, one)) if is_log else one for one in (ticks[0], ticks[-1], value))
            return bottom - PANEL_HEIGHT * (min(max(at, low), high) - low) / (high - low)

        for begin, end in rests:
            self.box(self.x(begin), top, max(self.x(end), self.x(begin) + 2), bottom, REST)
        for tick in ticks:
            self.line([(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], GRID, 1)
            self.text((LEFT - 8, y(tick)), f"{tick:,.0f}", 13, FAINT, "rm")
        x = LEFT + self.text((LEFT, top - 8), title, 15)
        for name, colour, points in series:
            if len(series) > 1:
                self.line([(x + 16, top - 13), (x + 34, top - 13)], colour, 2.5)
                x += 40 + self.text((x + 40, top - 8), name, 14, FAINT)
            for run in _runs(points):
                if len(run) > 1:
                    self.line([(self.x(at), y(value)) for at, value in run], colour, 1.4)


def _round_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers from 0 to one above the largest value."""
    largest = max(values, default=1.0)
    step = _round_step(largest / 4)
    return [step * number for number in range(int(largest / step) + 2)]


def _powers_of_ten(values: Sequence[float]) -> list[float]:
    """Powers of ten around the values."""
    low, high = (math.log10(max(1.0, pick(values, default=1.0))) for pick in (min, max))
    return [10.0**power for power in range(math.floor(low), max(math.floor(low) + 1, math.ceil(high)) + 1)]


def _round_step(size: float) -> float:
    """The least of 1, 2, 5, 10, 20 and so on that is not below `size`."""
    power = 1.0
    while power * 10 <= size:
        power *= 10
    return max(1.0, next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size))


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The points without the gaps between them, as between two servers."""
    runs: list[list[Point]] = []
    for point in points:
        if not runs or point[0] - runs[-1][-1][0] > 30:
            runs.append([])
        runs[-1].append(point)
    return runs


def plot(result: dict[str, Any], path: Path) -> None:
    """Writes a PNG of memory, descriptors and threads, the canary, and the requests of all phases in a row."""
    phases, starts, end = result["phases"], [], 0.0
    for phase in phases:
        starts.append(end)
        end += phase["samples"][-1]["at_s"] + 15
    samples = [
        (start + sample["at_s"], sample)
        for start, phase in zip(starts, phases, strict=True)
        for sample in phase["samples"]
    ]

    def line(pick: Callable[[dict[str, Any]], float | None]) -> list[Point]:
        return [(at, value) for at, sample in samples if (value := pick(sample)) is not None]

    rests = [
        (start + rest["begin_s"], start + rest["at_s"])
        for start, phase in zip(starts, phases, strict=True)
        for rest in phase["rests"]
    ]
    panels: list[tuple[str, list[Series]]] = [
        ("Memory of all processes, MB", [("", BLUE, line(lambda one: one["memory_mb"]))]),
        ("Open file descriptors", [("", BLUE, line(lambda one: one["descriptors"]))]),
        ("Threads", [("", BLUE, line(lambda one: one["threads"]))]),
        (
            "One photograph at a time, ms",
            [
                ("99 % of the answers of 5 s within", ORANGE, line(lambda one: one["p99_ms"])),
                ("median", BLUE, line(lambda one: one["p50_ms"])),
            ],
        ),
        (
            "Requests per second",
            [
                ("all", BLUE, line(lambda one: one["per_s"])),
                ("429 or 503", ORANGE, line(_refused_per_s)),
            ],
        ),
    ]
    chart = Chart(len(panels), end)
    total = sum(sum(sample["statuses"].values()) for _, sample in samples)
    chart.text((LEFT, 28), f"{end / 60:.0f} minutes of mixed traffic with faults: {total:,} requests", 20)
    for number, (title, series) in enumerate(panels):
        chart.panel(number, title, series, rests, title.endswith(" ms"))
    bottom = TOP + len(panels) * (PANEL_HEIGHT + GAP) - GAP
    _draw_axis(chart, bottom, end)
    _draw_marks(chart, starts, phases, bottom)
    small = chart.image.resize((WIDTH, chart.image.height // SCALE), Image.Resampling.LANCZOS)
    small.quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def _refused_per_s(sample: dict[str, Any]) -> float:
    statuses = sample["statuses"]
    refused = sum(count for status, count in statuses.items() if str(status) in ("429", "503"))
    total = sum(statuses.values())
    return float(sample["per_s"] * refused / total) if total else 0.0


def _draw_axis(chart: Chart, bottom: float, end_s: float) -> None:
    step = 600 if end_s > 1800 else 60
    for seconds in range(0, int(end_s) + 1, step):
        chart.text((chart.x(seconds), bottom + 18), f"{seconds // 60} min", 13, FAINT, "ms")


def _draw_marks(chart: Chart, starts: Sequence[float], phases: Sequence[dict[str, Any]], bottom: float) -> None:
    """Ticks above the panels where faults began, and the legend below."""
    for start, phase in zip(starts, phases, strict=True):
        workers = phase["workers"]
        name = f"{workers} HTTP workers" if workers else "without HTTP workers"
        chart.text((chart.x(start) + 2, 56), name, 14, FAINT)
        if start:
            chart.line([(chart.x(start) - 6, 44), (chart.x(start) - 6, bottom)], FAINT, 1)
        for mark in phase["faults"]:
            if mark["name"] in MARKED:
                x = chart.x(start + mark["begin_s"])
                chart.line([(x, bottom + 24), (x, bottom + 34)], MARKED[mark["name"]], 2)
    x = float(LEFT)
    for name, colour in MARKED.items():
        chart.line([(x, bottom + 44), (x, bottom + 56)], colour, 3)
        x += 28 + chart.text((x + 8, bottom + 55), LABELS.get(name, name), 13, FAINT)
    chart.box(x, bottom + 44, x + 14, bottom + 56, REST)
    chart.text((x + 20, bottom + 55), "no load", 13, FAINT)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
