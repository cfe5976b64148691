"""What was found, as it is written down."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Facts."""

    model_config = ConfigDict(frozen=True)


class Machine(Frozen):
    """Where it was found, and how busy that was with something else."""

    processor: str
    cores: int
    """Processors that this process may keep busy."""
    load_before: float
    """The load average of the last minute."""
    load_after: float


class StageCost(Frozen):
    """One stage of a request by itself, in this process."""

    stage: str
    what: str
    kilobytes: float
    """Of what is read (decode) or written (answers)."""
    threads: int
    ms: float
    """Median of an image, while all threads work."""
    core_ms: float
    """Milliseconds of one processor an image."""
    images_per_s: float
    """Of all threads together."""
    cores: float
    """How many processors the threads kept busy: fewer than there are threads where they wait for one another."""
    images: int
    """How many were timed."""


class LoadFigures(Frozen):
    """A server under one load, over a window in which the load was steady."""

    route: str
    arrivals: str
    """`closed`: each connection sends again as soon as it is answered; `open`: requests come at random, at a rate."""
    connections: int
    asked_per_s: float | None = None
    """Of open arrivals."""
    images_per_s: float
    """Answered with 200."""
    p50_ms: float | None
    """From a request's first byte to the whole answer; none if none was answered."""
    p99_ms: float | None
    answered: int
    """How many the percentiles are made of."""
    failed: int
    """Answered with another status, or never."""
    window_s: float
    core_ms: float | None
    """Milliseconds of one processor (user and system) that an image cost the server, with all its processes; Linux."""
    server_cores: float | None
    """How many processors the server kept busy."""
    load_core_ms: float | None
    """What sending the load cost on the same machine, beside `core_ms` and not in it."""


class Served(Frozen):
    """Everything about one kind of server."""

    figures: tuple[LoadFigures, ...]
    left_out: dict[str, str] = {}
    """Loads that were not tried, and why."""

    def best(self, route: str) -> LoadFigures | None:
        """Where most images a second were answered, of closed arrivals."""
        closed = [figure for figure in self.figures if (figure.route, figure.arrivals) == (route, "closed")]
        return max(closed, key=lambda figure: figure.images_per_s, default=None)


class Share(Frozen):
    """One stage's part in an image."""

    stage: str
    core_ms: float
    share: float
    """Of the sum."""


class Limit(Frozen):
    """What the stages by themselves would allow, beside what the whole service did."""

    route: str
    shares: tuple[Share, ...]
    core_ms: float
    """Their sum."""
    cores: int
    images_per_s: float
    """All cores busy with nothing else; on an accelerator no more than the engine alone does."""
    beside_load_images_per_s: float
    """The same, if what sends the load takes its part of the same cores, as it does in this measurement."""
    load_core_ms: float
    measured_images_per_s: float
    measured_core_ms: float
    """Of the whole service, at the load at which it was fastest."""
    measured_cores: float
    """How many the whole service kept busy: neighbours, or threads that wait for one another, take from it."""
    front_images_per_s: float
    """What the server did without an engine."""
    ratio: float
    """Measured over `images_per_s`."""
    ratio_beside_load: float
    """Measured over `beside_load_images_per_s`."""


class ServiceBenchmark(Frozen):
    """All parts but the engine's; those that were not asked for are empty."""

    machine: Machine
    sample: str
    """What the servers were sent."""
    sample_kilobytes: float
    stages: tuple[StageCost, ...] = ()
    front: Served | None = None
    """With an engine that answers at once."""
    service: Served | None = None
    limits: tuple[Limit, ...] = ()
    without_limit: str | None = None
    """Why there is none."""
