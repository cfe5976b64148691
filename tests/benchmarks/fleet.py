"""Simulates a fleet of replicas under an autoscaler: how long images wait, how many are refused, what the fleet costs.

    .venv/bin/python -m tests.benchmarks.fleet                       # all scenarios of docker/SIZING.md, in minutes
    .venv/bin/python -m tests.benchmarks.fleet --only burst --seed 2

Each row of the table has the same seed, so it is the same at every run. What is assumed:

- Images arrive one per request at random times (a Poisson process), at a rate that is constant, follows the day, or
  has bursts. Clients do not wait for one another, and a refused image does not come again.
- A load balancer sends each image to a ready replica at random, as connections of many clients are spread.
- A replica has lanes. A free lane takes the waiting images at once, up to a batch, and needs a constant time for each
  image of it, whatever the batch: on a CPU a batch of eight takes eight times as long as one image. The time is that of
  the whole service, so it contains decoding and HTTP: lanes over the measured images/s. Requests of one image at a time
  are a little faster than that.
- A replica with QUEUE_IMAGES waiting images refuses more of them.
- A new replica is ready after a constant time, which `Pod` names. Nodes for it are there.
- Prometheus reads a replica's metrics every 10 s. The autoscaler looks every 15 s at the mean over a window of them,
  and applies Kubernetes' rule: the mean over its target, a tolerance of a tenth, windows of stabilisation and policies
  as in docker/kubernetes/components. KEDA makes an autoscaler of this kind, so the rule and the result are the same.
- A replica that is removed gets no new images, and finishes those that it has.
"""

from __future__ import annotations

import argparse
import heapq
import math
from array import array
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from tests.benchmarks.arrivals import Rate, Times, arrivals, bursts, constant, day
from tests.benchmarks.autoscaler import BUSY, QUEUE, Autoscaler, Recommender, Target


@dataclass(frozen=True)
class Pod:
    """One replica of the service.

    Attributes:
        lanes: batches that run at once.
        batch: most images in one batch.
        image_s: seconds of a lane for one image.
        batch_s: seconds of a lane for a batch, on top.
        queue_images: images that may wait; more are refused.
        start_s: seconds from its creation until it gets images.
        exponential: whether the time of a batch is random with this mean, as in textbooks of queues.
    """

    lanes: int
    batch: int
    image_s: float
    batch_s: float = 0.0
    queue_images: int = 512
    start_s: float = 10.0
    exponential: bool = False

    @property
    def images_per_s(self) -> float:
        """The highest throughput, with full batches."""
        return self.lanes * self.batch / (self.batch_s + self.batch * self.image_s)


@dataclass
class Replica:
    """A replica while it is simulated: its waiting images, by the time of their arrival, and its free lanes."""

    created: float
    ready: float
    free: int
    waiting: deque[float] = field(default_factory=deque)


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        waits: seconds from arrival to the start of the batch, of the images that were served.
        times: seconds from arrival to the end of the batch, of the same images.
        refused: number of images that found a full queue or no replica.
        replica_s: seconds of all replicas, from creation to removal.
        replicas: the number of replicas after each change, with its time.
    """

    waits: Times
    times: Times
    refused: int
    replica_s: float
    replicas: list[tuple[float, int]]


def simulate(
    rate: Rate, seconds: float, pod: Pod, fleet: Autoscaler | int, rng: np.random.Generator, start: int | None = None
) -> Outcome:
    """Simulates the fleet until `seconds`, and then until every image is served.

    Args:
        rate: images per second over time.
        seconds: until when images arrive.
        pod: what each replica is.
        fleet: the autoscaler, or a constant number of replicas.
        rng: the source of all chance.
        start: replicas at the start; by default those that the autoscaler has at least.
    """
    return _Simulation(pod, fleet, rng, start).run(rate, seconds)


class _Simulation:
    def __init__(self, pod: Pod, fleet: Autoscaler | int, rng: np.random.Generator, start: int | None) -> None:
        self._pod, self._rng = pod, rng
        self._scaler = None if isinstance(fleet, int) else fleet
        least = fleet if isinstance(fleet, int) else fleet.least
        self._all = [Replica(0, 0, pod.lanes) for _ in range(least if start is None else start)]
        self._ready = list(self._all)
        self._ends: list[tuple[float, int, Replica, list[float]]] = []
        self._sequence = 0
        self._waits, self._times = array("d"), array("d")
        self._refused = 0
        self._replica_s = 0.0
        self._history = [(0.0, len(self._all))]
        self._scrapes: deque[tuple[float, dict[str, float]]] = deque()

    def run(self, rate: Rate, seconds: float) -> Outcome:
        scaler = self._scaler
        recommender = scaler and Recommender(scaler)
        next_scrape = scaler.scrape_s if scaler else math.inf
        next_sync = scaler.sync_s if scaler else math.inf
        for block in arrivals(rate, seconds, self._rng):
            picks = self._rng.random(len(block))
            for arrival, pick in zip(block.tolist(), picks.tolist(), strict=True):
                while min(next_scrape, next_sync) <= arrival:
                    now = min(next_scrape, next_sync)
                    self._finish(now)
                    if now == next_scrape and scaler:
                        self._scrape(now)
                        next_scrape += scaler.scrape_s
                    elif scaler and recommender:
                        sums = [self._mean(now, target) for target in scaler.targets]
                        self._scale(now, recommender.replicas(now, len(self._all), sums))
                        next_sync += scaler.sync_s
                self._finish(arrival)
                self._arrive(arrival, pick)
        self._finish(math.inf)
        self._replica_s += sum(max(seconds - replica.created, 0) for replica in self._all)
        return Outcome(np.array(self._waits), np.array(self._times), self._refused, self._replica_s, self._history)

    def _arrive(self, now: float, pick: float) -> None:
        if not self._ready:
            self._refused += 1
            return
        replica = self._ready[int(pick * len(self._ready))]
        if replica.free:
            replica.waiting.append(now)
            self._begin(replica, now)
        elif len(replica.waiting) < self._pod.queue_images:
            replica.waiting.append(now)
        else:
            self._refused += 1

    def _begin(self, replica: Replica, now: float) -> None:
        pod, waiting = self._pod, replica.waiting
        batch = [waiting.popleft() for _ in range(min(len(waiting), pod.batch))]
        took = pod.batch_s + len(batch) * pod.image_s
        if pod.exponential:
            took = float(self._rng.exponential(took))
        replica.free -= 1
        self._waits.extend([now - arrival for arrival in batch])
        self._sequence += 1
        heapq.heappush(self._ends, (now + took, self._sequence, replica, batch))

    def _finish(self, until: float) -> None:
        ends = self._ends
        while ends and ends[0][0] <= until:
            now, _, replica, batch = heapq.heappop(ends)
            self._times.extend([now - arrival for arrival in batch])
            replica.free += 1
            if replica.waiting:
                self._begin(replica, now)
        if len(self._ready) < len(self._all):
            self._ready = [replica for replica in self._all if replica.ready <= until]

    def _scrape(self, now: float) -> None:
        lanes = self._pod.lanes
        sums = {
            "queue": float(sum(len(replica.waiting) for replica in self._all)),
            "busy": sum(lanes - replica.free for replica in self._all) / lanes,
        }
        self._scrapes.append((now, sums))
        while self._scrapes[0][0] <= now - 600:
            self._scrapes.popleft()

    def _mean(self, now: float, target: Target) -> float:
        values = [sums[target.metric] for at, sums in self._scrapes if at > now - target.window_s]
        return sum(values) / len(values) if values else 0.0

    def _scale(self, now: float, count: int) -> None:
        if count == len(self._all):
            return
        for _ in range(count - len(self._all)):
            self._all.append(Replica(now, now + self._pod.start_s, self._pod.lanes))
        while len(self._all) > count:
            self._replica_s += now - self._all.pop().created
        self._ready = [replica for replica in self._all if replica.ready <= now]
        self._history.append((now, count))


CPU_POD = Pod(lanes=2, batch=8, image_s=2 / 65)
"""Two cores: 65 images/s of mae_tiny in fp32."""
GPU_POD = Pod(lanes=8, batch=1, image_s=8 / 2887)
"""An H200 with 16 cores and 8 HTTP workers, which are the bottleneck: 2,887 images/s."""
BOTH, QUEUE_ALONE = Autoscaler((QUEUE, BUSY)), Autoscaler((QUEUE,))


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    rate: Rate
    seconds: float
    pod: Pod
    fleet: Autoscaler | int


def scenarios() -> list[Scenario]:
    """The rows of docker/SIZING.md."""
    days, peaks = day(150), bursts(60, 300, 900, 180)
    slow, nodes = replace(CPU_POD, start_s=25), replace(CPU_POD, start_s=150)
    return [
        Scenario("steady, 10/s, 1 CPU replica", constant(10), 1200, CPU_POD, 1),
        Scenario("steady, half of 65/s, 1 CPU replica", constant(32.5), 1200, CPU_POD, 1),
        Scenario("steady, 70 % of 65/s, 1 CPU replica", constant(45.5), 1200, CPU_POD, 1),
        Scenario("steady, 90 % of 65/s, 1 CPU replica", constant(58.5), 1200, CPU_POD, 1),
        Scenario("steady, 1,000/s, 22 CPU replicas", constant(1000), 600, CPU_POD, 22),
        Scenario("steady, 1,000/s, 17 CPU replicas", constant(1000), 600, CPU_POD, 17),
        Scenario("steady, 1,000/s, 1 GPU replica", constant(1000), 600, GPU_POD, 1),
        Scenario("steady, 100,000/s, 50 GPU replicas", constant(100_000), 10, GPU_POD, 50),
        Scenario("day, queue alone", days, 86_400, CPU_POD, QUEUE_ALONE),
        Scenario("day, queue and busy lanes", days, 86_400, CPU_POD, BOTH),
        Scenario("day, 6 CPU replicas", days, 86_400, CPU_POD, 6),
        Scenario("burst, queue alone", peaks, 7200, CPU_POD, QUEUE_ALONE),
        Scenario("burst, queue and busy lanes", peaks, 7200, CPU_POD, BOTH),
        Scenario("burst, the same, start in 25 s", peaks, 7200, slow, BOTH),
        Scenario("burst, the same, start in 150 s (a new node)", peaks, 7200, nodes, BOTH),
        Scenario("burst, 7 CPU replicas", peaks, 7200, CPU_POD, 7),
    ]


def describe(outcome: Outcome) -> str:
    """The cells of the table: percentiles of wait and answer in ms, share refused, replicas, and replica-hours."""
    images = len(outcome.waits) + outcome.refused
    wait = [f"{1000 * np.percentile(outcome.waits, q):,.0f}" for q in (50, 99)]
    whole = [f"{1000 * np.percentile(outcome.times, q):,.0f}" for q in (50, 99)]
    counts = [count for _, count in outcome.replicas]
    range_ = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    refused, hours = f"{100 * outcome.refused / images:.2g} %", f"{outcome.replica_s / 3600:.2f}"
    return " | ".join([f"{images:,}", ", ".join(wait), ", ".join(whole), refused, range_, hours])


def main() -> None:
    """Prints a row for each scenario."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="only scenarios whose name begins so")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print("| scenario | images | wait: p50, p99, ms | answer: p50, p99, ms | refused | replicas | replica-hours |")
    print("|---|---|---|---|---|---|---|")
    for scenario in scenarios():
        if scenario.name.startswith(given.only):
            rng = np.random.default_rng(given.seed)
            outcome = simulate(scenario.rate, scenario.seconds, scenario.pod, scenario.fleet, rng)
            print(f"| {scenario.name} | {describe(outcome)} |", flush=True)


if __name__ == "__main__":
    main()
