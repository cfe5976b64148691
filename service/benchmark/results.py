"""The results of a benchmark of the service, as `mae bench --json` writes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """An immutable part of the results."""

    model_config = ConfigDict(frozen=True)


class Machine(Result):
    """The machine of the measurement, and its load average."""

    processor: str
    cores: int
    """CPU cores that this process may keep busy."""
    load_before: float
    """The load average of the minute before the measurement."""
    load_after: float
    """The load average of the last minute of the measurement."""


class StageCost(Result):
    """One stage of a request, measured alone in this process."""

    stage: str
    """`decode` or `answer`."""
    what: str
    """The kind of file that is decoded, or of answer that is written."""
    kilobytes: float
    """The mean size of the file or of the answer."""
    threads: int
    ms: float
    """Median milliseconds per image, while all threads work."""
    core_ms: float
    """CPU time in milliseconds per image."""
    images_per_s: float
    """Images per second of all threads together."""
    cores: float
    """Number of cores that the threads kept busy: less than the number of threads if they wait for one another."""
    images: int
    """Number of images that were timed."""


class LoadFigures(Result):
    """A server under one load, over a window in which the load was steady."""

    route: str
    arrivals: str
    """`closed`: each connection sends again as soon as it is answered; `open`: requests arrive at random, at a rate."""
    connections: int
    asked_per_s: float | None = None
    """The rate of open arrivals, in requests per second."""
    images_per_s: float
    """Images per second that were answered with status 200."""
    p50_ms: float | None
    """Median milliseconds from a request's first byte to the end of its answer; None if no request was answered."""
    p95_ms: float | None = None
    """The 95th percentile of the same milliseconds."""
    p99_ms: float | None
    """The 99th percentile of the same milliseconds."""
    images_per_batch: float | None = None
    """Mean number of images in the batches that ended in the window; None if there was none."""
    answered: int
    """Number of answers that the percentiles are computed from."""
    failed: int
    """Number of requests that were answered with another status, or never."""
    window_s: float
    """The length of the window in seconds."""
    core_ms: float | None
    """CPU time (user and system) in milliseconds per image, of the server and all its processes; Linux only."""
    server_cores: float | None
    """Number of cores that the server kept busy."""
    load_core_ms: float | None
    """CPU time in milliseconds per image that sending the load took on the same machine; `core_ms` excludes it."""


class Tail(Result):
    """How long requests take that arrive at random, compared with one request at a time."""

    route: str
    asked_per_s: float
    """The rate of arrivals, in requests per second."""
    lone_p50_ms: float
    """Median milliseconds of one request at a time."""
    ratios: tuple[float, float, float]
    """p50, p95 and p99 over `lone_p50_ms`."""


class ServerFigures(Result):
    """One kind of server under all its loads."""

    figures: tuple[LoadFigures, ...]
    left_out: dict[str, str] = {}
    """Loads that were not tried, and the reasons."""

    def best(self, route: str) -> LoadFigures | None:
        """The figures of the closed load under which the most images per second were answered."""
        closed = [figure for figure in self.figures if (figure.route, figure.arrivals) == (route, "closed")]
        return max(closed, key=lambda figure: figure.images_per_s, default=None)

    def tails(self) -> list[Tail]:
        """The tail of each open load whose route was also asked for one request at a time."""
        lone = {figure.route: figure.p50_ms for figure in self.figures if figure.connections == 1}
        return [
            Tail(
                route=figure.route,
                asked_per_s=figure.asked_per_s,
                lone_p50_ms=one,
                ratios=(figure.p50_ms / one, figure.p95_ms / one, figure.p99_ms / one),
            )
            for figure in self.figures
            if figure.asked_per_s is not None
            and (one := lone.get(figure.route))
            and figure.p50_ms is not None
            and figure.p95_ms is not None
            and figure.p99_ms is not None
        ]


class StageShare(Result):
    """The CPU time of one stage per image."""

    stage: str
    core_ms: float
    share: float
    """Its share of the sum of all stages."""


class Limit(Result):
    """The throughput that the stages alone would allow, beside that of the whole service."""

    route: str
    shares: tuple[StageShare, ...]
    core_ms: float
    """The sum of all stages: CPU time in milliseconds per image."""
    cores: int
    """CPU cores of the machine that this process may keep busy."""
    images_per_s: float
    """The limit if all cores do nothing else; with a GPU, at most the throughput of the engine alone."""
    beside_load_images_per_s: float
    """The limit if the sender of the load uses the same cores, as it does in this measurement."""
    load_core_ms: float
    """CPU time in milliseconds per image that sending the load took."""
    measured_images_per_s: float
    """The throughput of the whole service under the load at which it was highest."""
    measured_core_ms: float
    """CPU time in milliseconds per image of the whole service at that load."""
    measured_cores: float
    """Number of cores that the whole service kept busy: less if other programs run, or if threads wait."""
    front_images_per_s: float
    """The throughput of the server with an engine that answers at once."""
    ratio: float
    """`measured_images_per_s` over `images_per_s`."""
    ratio_beside_load: float
    """`measured_images_per_s` over `beside_load_images_per_s`."""


class ServiceBenchmark(Result):
    """All parts of a benchmark but the engine's; parts that were not measured are empty."""

    machine: Machine
    sample: str
    """The name of the images that the servers were sent."""
    sample_kilobytes: float
    """The mean size of these images."""
    stages: tuple[StageCost, ...] = ()
    front: ServerFigures | None = None
    """The figures of the server with an engine that answers at once."""
    service: ServerFigures | None = None
    """The figures of the server with the model's engine."""
    limits: tuple[Limit, ...] = ()
    without_limit: str | None = None
    """The reason why there is no limit; None if there is one."""
