"""Workers and the engine process under every order of messages, and with either side killed between any two steps.

The transport is a Unix stream: it loses, repeats and reorders no message. What it can do is deliver late and in pieces,
and end after any byte. All that is tried here, in virtual time, with both sides in one process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.workers.messages import HEAD
from tests.service.workers.virtual_service import GREY, LOAD_S, Asked, VirtualService
from tests.support.virtual_time import VirtualProcess

pytestmark = pytest.mark.slow

START_TIMEOUT_S, ANSWER_TIMEOUT_S, EXIT_TIMEOUT_S, LOST_GRACE_S = 60, 30, 5, 2
"""The documented times of the supervisor, and the time in which probes can read why the engine is lost."""
SLACK_S = 1.0
HEARD_S = 0.2
"""Time in which messages arrive that nothing holds up, in whatever pieces."""

PROPERTY = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
SEED = st.integers(0, 1 << 32)
WORKER = st.integers(0, 5)
ASK = st.tuples(
    st.just("ask"),
    WORKER,
    st.integers(1, 5),
    st.sampled_from([math.inf, math.inf, 0.0, 0.01, 0.05, 0.2]),
    st.booleans(),
    st.sampled_from([False] * 7 + [True]),
)
FAULT = st.one_of(
    st.tuples(st.just("kill"), WORKER, st.integers(0, 60)),
    st.tuples(st.just("stall"), WORKER, st.sampled_from([0.05, 1.0, 25.0, 100.0])),
    st.tuples(st.just("scrape"), WORKER),
)
PAUSE = st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.1, 0.5])
STEPS = st.lists(st.tuples(PAUSE, st.one_of(ASK, ASK, ASK, FAULT)), max_size=25)


@pytest.fixture(autouse=True)
def without_log() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Conversation:
    """What clients and faults do to a service, step by step."""

    def __init__(self, service: VirtualService) -> None:
        self.service = service
        self._numbers = (number for number in itertools.cycle(range(1, 256)) if number != GREY)
        self._scrapes: list[tuple[VirtualProcess, Any]] = []
        self._stalled: set[VirtualProcess] = set()

    async def play(self, steps: list[tuple[float, Any]]) -> None:
        for pause, (name, *arguments) in steps:
            await asyncio.sleep(pause)
            if processes := self.service.accepting:
                index, *rest = arguments
                getattr(self, name)(processes[index % len(processes)], *rest)

    def ask(
        self,
        process: VirtualProcess,
        count: int = 2,
        seconds: float = math.inf,
        leaves: bool = False,
        poisoned: bool = False,
    ) -> Asked:
        numbers = [next(self._numbers) for _ in range(count)]
        self.service.poison -= set(numbers)
        if poisoned:
            self.service.poison.add(numbers[-1])
        return self.service.ask(process, numbers, seconds, leaves)

    def kill(self, process: VirtualProcess, lost: int) -> None:
        process.die(-9, lost)

    def stall(self, process: VirtualProcess, seconds: float) -> None:
        self._stalled.add(process)
        process.link.stall(True)
        self.service.loop.call_later(seconds, process.link.stall, False)

    def scrape(self, process: VirtualProcess) -> None:
        future, number = Future[bytes](), 1000 + len(self._scrapes)
        process.context.copy().run(self.service.services[process]._request_scrape, number, future)
        self._scrapes.append((process, future))

    def _may_hold(self, asked: Asked, at: float) -> bool:
        """Whether a request may have had room in the queue: until the engine process hears that it has ended."""
        return asked.process in self._stalled or asked.ended_at > at - HEARD_S

    async def settle(self) -> None:
        """All requests end in the documented time: a worker that does not answer is killed and replaced."""
        end = self.service.loop.now + 2 * ANSWER_TIMEOUT_S + START_TIMEOUT_S
        while self.service.loop.now < end and not all(asked.outcomes for asked in self.service.asked):
            await asyncio.sleep(0.5)
        for asked in self.service.asked:
            assert len(asked.outcomes) == 1, (asked.numbers, asked.outcomes)
        await asyncio.sleep(SLACK_S)

    async def recover(self) -> None:
        """Waits until all workers run."""
        workers, service = self.service.settings.http_workers, self.service
        end = service.loop.now + 3 * ANSWER_TIMEOUT_S + START_TIMEOUT_S
        while len(service.accepting) < workers or any(process.link.stalled for process in service.accepting):
            if not service.loop.kills:
                return  # nobody is there to start one
            assert service.loop.now < end, "no worker takes the place of a dead one"
            await asyncio.sleep(0.5)
        await asyncio.sleep(SLACK_S)

    def check_outcomes(self) -> None:
        service = self.service
        for asked in service.asked:
            [outcome] = asked.outcomes
            allowed = {"answered"}
            if asked.process.returncode is not None and asked.process.returncode != 0:
                allowed.add("lost")
            if asked.ended_at >= service.draining_at:
                allowed.add("draining")
            if asked.ended_at >= service.lost_at:
                allowed.add("engine_lost")
            hears_late = asked.process in self._stalled or asked.at < service.ready_at + HEARD_S
            if asked.process.started_at < service.ready_at and hears_late:
                allowed.add("not_ready")
            if service.poison & set(asked.numbers):
                allowed = (allowed - {"answered"}) | {"inference_failed"}
            if asked.at > min(service.draining_at, service.lost_at) + HEARD_S and asked.process not in self._stalled:
                allowed -= {"answered", "inference_failed"}
            allowed |= {"left", "deadline"} if outcome in ("left", "deadline") and asked.is_bounded else set()
            if outcome == "queue_full":
                held = [one for one in service.asked if one.at <= asked.at and self._may_hold(one, asked.at)]
                assert sum(len(one.numbers) for one in held) > service.settings.queue_images
                continue
            assert outcome in allowed, f"{asked.numbers} at {asked.at}: {outcome}, not of {allowed}"
        for process, future in self._scrapes:
            assert process.returncode is not None or future.result(0).startswith(b"#"), "a scrape has no answer"


@PROPERTY
@given(SEED, st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 8]), st.sampled_from([0.0, LOAD_S, 1.0]), STEPS)
def test_every_request_ends_once_and_nothing_is_held_for_the_dead(
    seed: int, workers: int, lanes: int, queued_slots: int, begin: float, steps: list[Any]
) -> None:
    with VirtualService(seed, workers, lanes, queued_slots) as service:
        conversation = Conversation(service)

        async def work() -> None:
            await asyncio.sleep(begin)
            await conversation.play(steps)
            await conversation.settle()
            await conversation.recover()
            conversation.check_outcomes()
            service.check_idle()
            for process in service.accepting:  # every worker serves again, with all its slots
                last = [conversation.ask(process, 2) for _ in range(2)]
                await asyncio.sleep(SLACK_S)
                assert [asked.outcomes for asked in last] == [["answered"]] * 2
            service.check_idle()
            service.drain()
            await require_end(service, 0, service.settings.drain_timeout_s + 2 * EXIT_TIMEOUT_S + SLACK_S)

        service.run(work())


@PROPERTY
@given(SEED, st.integers(1, 3), STEPS, st.sampled_from(["drain", "lose", "kill"]), STEPS)
def test_the_end_reaches_every_worker_and_every_request(
    seed: int, workers: int, before: list[Any], end: str, after: list[Any]
) -> None:
    with VirtualService(seed, workers) as service:
        conversation = Conversation(service)

        async def work() -> None:
            await asyncio.sleep(LOAD_S)
            await conversation.play(before)
            if end == "drain":
                service.drain()
                await conversation.play(after)
                await require_end(service, 0, service.settings.drain_timeout_s + 2 * EXIT_TIMEOUT_S + SLACK_S)
            elif end == "lose":
                await conversation.recover()
                service.is_fatal = True
                conversation.ask(service.accepting[0], 1)
                await conversation.play(after)
                while math.isinf(service.lost_at):  # the worker was killed before its image was in a batch
                    for process in service.accepting:
                        conversation.ask(process, 1)
                    await asyncio.sleep(0.2)
                await require_end(service, 1, LOST_GRACE_S + 2 * EXIT_TIMEOUT_S + 3 * SLACK_S)
            else:
                service.kill_engine_process(lost=seed % 50)
                await asyncio.sleep(100 + SLACK_S)  # as long as one may stand still
            assert all(process.returncode is not None for process in service.loop.processes), "a worker is left"
            if end == "kill":
                assert {process.returncode for process in service.loop.processes} <= {-9, 1}
            for asked in service.asked:
                assert len(asked.outcomes) == 1, (asked.numbers, asked.outcomes)
            conversation.check_outcomes()

        service.run(work())


async def require_end(service: VirtualService, code: int, seconds: float) -> None:
    """The engine process ends with `code` within `seconds`."""
    end = service.loop.now + seconds
    while service.exit_code is None:
        assert service.loop.now < end, "the engine process does not end"
        await asyncio.sleep(0.1)
    assert service.exit_code == code


def message_ends(seed: int, writer: int) -> list[int]:
    """The number of bytes that one side has written at the end of each of its messages."""
    written = bytearray()

    def record(service: VirtualService) -> None:
        stream = service.loop.processes[0].link.streams[writer]
        write = stream.write

        def write_and_record(data: bytes) -> None:
            written.extend(data)
            write(data)

        stream.write = write_and_record  # type: ignore[method-assign]

    talk(seed, record)
    ends, at = [0], 0
    while at < len(written):
        at += HEAD.size + HEAD.unpack_from(written, at)[0]
        ends.append(at)
    return ends


def talk(seed: int, prepare: Any) -> VirtualService:
    """A conversation of one worker: two requests, of which one leaves, a sample of the metrics, and a third request."""
    with VirtualService(seed, 1) as service:
        conversation = Conversation(service)

        async def work() -> None:
            while not service.loop.processes:
                await asyncio.sleep(0)
            prepare(service)
            await asyncio.sleep(1)
            ask = (("ask", 0, 3), ("ask", 0, 2, 0.02, True), ("scrape", 0), ("ask", 0, 1, math.inf, False, True))
            await conversation.play([(0.01, step) for step in ask])
            await conversation.settle()
            for _ in range(2):  # one of them may be lost
                if service.loop.kills:
                    await conversation.recover()
                for process in service.accepting:
                    conversation.ask(process)
                await conversation.settle()
            if not service.loop.kills:
                await asyncio.sleep(5)
                assert [process.returncode for process in service.loop.processes] == [1]
            else:  # the place may lie behind the last message: the text of the metrics is not always as long
                service.check_idle()
                assert ["answered"] in [asked.outcomes for asked in service.asked[-2:]]
            conversation.check_outcomes()

        service.run(work())
    return service


@pytest.mark.parametrize("writer", [0, 1], ids=["engine", "worker"])
def test_either_side_may_die_after_any_message_and_within_it(writer: int) -> None:
    """After each message, and a byte before its end."""
    ends = message_ends(7, writer)
    assert len(ends) > 8
    around = {end + more for end in ends for more in (-1, 0)}
    for place in sorted(place for place in around if 0 < place < ends[-1]):

        def prepare(service: VirtualService, place: int = place) -> None:
            process = service.loop.processes[0]
            stream = process.link.streams[writer]
            stream.budget = place
            stream.on_spent = service.kill_engine_process if writer == 0 else lambda: process.die(-9)

        service = talk(7, prepare)
        if place < ends[-3]:
            assert service.loop.processes[0].returncode == (1 if writer == 0 else -9), "it was not killed there"
