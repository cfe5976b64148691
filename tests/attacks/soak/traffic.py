"""Clients in closed loops, whose answers are compared with those that were recorded on a server without other load."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque
from collections.abc import Sequence

from tests.attacks.client import Answer, Connection, Lost, ask, describe
from tests.attacks.soak.requests import Request

CLIENTS = 8
CANARY_PERIOD_S = 0.25
OVERLOAD_ENDS_S = 30.0
"""How long after a burst, or after connections above the limit, requests may be refused."""
KEPT_HEADERS = (b"content-type", b"x-mae-seed", b"x-mae-loss", b"x-mae-space", b"x-mae-keep", b"x-mae-scale")

ID = re.compile(rb'"id":"[^"]*"')

RIGHT = "answered with the same bits"
CHANGING = "answered, of a server's own seed"
REFUSED = "refused with Retry-After under overload"
CUT_OFF = "closed while its body was sent, under overload"
LATE = "504 under overload"
WITH_WORKER = "lost with a killed worker"


class Soak:
    """What the clients of one server share: the recorded answers, and the counts of everything seen."""

    def __init__(self, port: int, recorded: dict[Request, Answer], changing: Sequence[Request]) -> None:
        self.port = port
        self.recorded = recorded
        self.changing = changing
        self.requests = list(recorded)
        self.seen: Counter[str] = Counter()
        self.differences: list[str] = []
        """The first differences and other surprises, in words."""
        self.statuses: Counter[int] = Counter()
        """The statuses since the sampler took them last."""
        self.canary: deque[tuple[float, float]] = deque()
        """Times and seconds of the canary's answers since the sampler took them last."""
        self.killed_ports: set[int] = set()
        """Ports of the clients whose worker was killed."""
        self.overload_until = 0.0
        self.random = random.Random(11)

    def note(self, what: str, detail: str = "") -> None:
        """Counts what was seen; the log of surprises is bounded."""
        self.seen[what] += 1
        if detail and len(self.differences) < 200:
            self.differences.append(f"{what}: {detail}")

    def expect_overload(self) -> None:
        """Requests may be refused from now on, for some time."""
        self.overload_until = time.monotonic() + OVERLOAD_ENDS_S

    def judge(self, request: Request, answer: Answer) -> None:
        """Counts whether an answer is the right one."""
        self.statuses[answer.status] += 1
        expected = self.recorded.get(request)
        overloaded = time.monotonic() < self.overload_until
        if overloaded and answer.status in (429, 503) and b"retry-after" in answer.headers:
            self.note(REFUSED)
        elif overloaded and answer.status == 504:
            self.note(LATE)
        elif expected is None:
            if answer.status == 200:
                self.note(CHANGING)
            else:
                self.note(f"{describe(answer)} of a server's own seed", request.path)
        elif is_same(answer, expected):
            self.note(RIGHT)
        elif answer.status != expected.status:
            self.note(f"{describe(answer)} in place of {describe(expected)}", request.path)
        else:
            self.note("another answer", f"{request.path} {expected.headers} {answer.headers}")

    def judge_loss(self, request: Request, lost: Lost) -> None:
        """Counts a request without an answer."""
        self.statuses[0] += 1
        if lost.port in self.killed_ports:
            self.note(WITH_WORKER)
        elif str(lost) == "BrokenPipeError" and time.monotonic() < self.overload_until:
            self.note(CUT_OFF)
        else:
            self.note(f"lost ({lost})", f"{request.path}, at {time.strftime('%H:%M:%S')}")

    async def send(self, request: Request) -> None:
        """One request over a connection of its own."""
        try:
            self.judge(request, await ask(self.port, request.content))
        except Lost as lost:
            self.judge_loss(request, lost)
        except OSError as error:
            self.note(f"not connected ({type(error).__name__})")

    async def run_client(self, number: int, period_s: float, ended: asyncio.Event) -> None:
        """Sends a request each `period_s` on average, or as soon as the last one is answered if that is later."""
        draw = random.Random(number)
        connection: Connection | None = None
        next_at = time.monotonic() + draw.uniform(0, period_s)
        while not ended.is_set():
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
            next_at = max(time.monotonic(), next_at + draw.uniform(0, 2 * period_s))
            request = draw.choice(self.changing if draw.random() < 0.1 else self.requests)
            if connection is None or not connection.is_open or draw.random() < 0.05:
                connection = await self._reopen(connection)
                if connection is None:
                    continue
            try:
                self.judge(request, await connection.exchange(request.content))
            except Lost as lost:
                self.judge_loss(request, lost)
        if connection is not None:
            connection.close()

    async def _reopen(self, connection: Connection | None) -> Connection | None:
        if connection is not None and connection.is_open:
            connection.close()
        try:
            return await Connection.open(self.port)
        except OSError as error:
            self.note(f"not connected ({type(error).__name__})")
            await asyncio.sleep(1)
            return None

    async def run_canary(self, request: Request, ended: asyncio.Event) -> None:
        """Sends one photograph again and again over a connection of its own, and notes the seconds of each answer."""
        connection: Connection | None = None
        while not ended.is_set():
            if connection is None or not connection.is_open:
                connection = await self._reopen(connection)
                if connection is None:
                    continue
            begin = time.monotonic()
            try:
                self.judge(request, await connection.exchange(request.content))
                self.canary.append((begin, time.monotonic() - begin))
            except Lost as lost:
                self.judge_loss(request, lost)
            await asyncio.sleep(max(0.0, begin + CANARY_PERIOD_S - time.monotonic()))
        if connection is not None:
            connection.close()

    async def run(self, rate_per_s: float, ended: asyncio.Event) -> None:
        """All clients and the canary, until the event is set and their last answers have come."""
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self.run_client(number, CLIENTS / rate_per_s, ended))
            group.create_task(self.run_canary(self.requests[0], ended))


def is_same(answer: Answer, expected: Answer) -> bool:
    """Whether status, body and the headers that describe it are equal, but for the id that Cohere's answers have."""
    kept = all(answer.headers.get(name) == expected.headers.get(name) for name in KEPT_HEADERS)
    bodies = (ID.sub(b"", one.body) if one.body[:6] == b'{"id":' else one.body for one in (answer, expected))
    return kept and answer.status == expected.status and next(bodies) == next(bodies)


async def record(soak: Soak, requests: Sequence[Request]) -> dict[Request, Answer]:
    """The answer to each request, alone; one whose second answer differs is counted and left out."""
    recorded = {}
    for request in requests:
        first, second = await ask(soak.port, request.content), await ask(soak.port, request.content)
        if is_same(second, first):
            recorded[request] = first
        else:
            soak.note("answered otherwise the second time", request.path)
    return recorded


async def measure_capacity(soak: Soak, seconds: float) -> float:
    """Requests per second that the clients get answered without a pause."""
    ended, answered = asyncio.Event(), soak.seen.total()
    clients = [asyncio.create_task(soak.run_client(number, 1e-9, ended)) for number in range(2 * CLIENTS)]
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    ended.set()
    await asyncio.gather(*clients)
    return (soak.seen.total() - answered) / (time.monotonic() - begin)
