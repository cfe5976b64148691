"""Who gives way where the memory for bodies is full."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from service.api import body_memory
from service.api.body_limit import BodyLimitMiddleware
from service.errors import MemoryFull
from tests.support.asgi import MB, Client, app_of, count_bytes, gauge, run, service


class Clock:
    """The time of the modules under test; the test moves it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(body_memory, "time", clock)
    yield clock


class Upload:
    """A request whose body arrives piece by piece, as the test sends it."""

    def __init__(self, app: Any) -> None:
        self._pieces: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self._messages: list[Any] = []
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
        self.task: asyncio.Task[None] = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        body, more = await self._pieces.get()
        return {"type": "http.request", "body": body, "more_body": more}

    async def _send(self, message: Any) -> None:
        self._messages.append(message)

    async def send(self, size: int, more: bool = True) -> None:
        self._pieces.put_nowait((bytes(size), more))
        await turn()

    @property
    def is_refused(self) -> bool:
        return self.task.done() and isinstance(self.task.exception(), MemoryFull)

    @property
    def is_answered(self) -> bool:
        return self.task.done() and self.task.exception() is None and self._messages[0]["status"] == 200


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(steps: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Runs `steps` with an app that has room for 2 MB and bodies of up to 1 MB, and with its service."""

    async def main() -> None:
        of = service()
        await steps(BodyLimitMiddleware(app_of(count_bytes), of), of)

    run(main())


def test_a_body_that_has_stopped_makes_room_for_others(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        smaller, larger = Upload(app), Upload(app)
        await smaller.send(MB - 1)
        await larger.send(MB)
        clock.now += 2
        assert (await Client(app).run([bytes(MB // 2)])).status == 200
        assert larger.is_refused and not smaller.task.done()
        assert gauge(of, "mae_inflight_bytes") == MB - 1
        await smaller.send(1, more=False)
        assert smaller.is_answered
        assert gauge(of, "mae_inflight_bytes") == 0

    play(steps)


def test_a_trickle_does_not_keep_what_was_sent_before(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        trickling = [Upload(app), Upload(app)]
        for upload in trickling:
            await upload.send(MB - 10)
        for _ in range(4):
            clock.now += 0.5
            for upload in trickling:
                await upload.send(1)
        assert (await Client(app).run([bytes(1000)])).status == 200
        assert sum(upload.is_refused for upload in trickling) == 1

    play(steps)


def test_a_body_that_arrives_well_keeps_its_room(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        growing = [Upload(app), Upload(app)]
        for size in (400_000, 300_000, 300_000):
            for upload in growing:
                await upload.send(size)
            clock.now += 0.9
        with pytest.raises(MemoryFull):
            await Client(app).run([bytes(10)])
        for upload in growing:
            await upload.send(0, more=False)
            assert upload.is_answered

    play(steps)


def test_a_complete_body_keeps_its_room_until_the_answer_begins(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        gate, read = asyncio.Event(), asyncio.Event()
        sent: list[float] = []

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            read.set()
            waiting = asyncio.ensure_future(receive())  # as a request waits for the client to leave
            await gate.wait()
            waiting.cancel()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            sent.append(gauge(of, "mae_inflight_bytes"))

        limited = BodyLimitMiddleware(inner, of)
        complete = [Upload(limited), Upload(limited)]
        for upload in complete:
            await upload.send(MB, more=False)
        clock.now += 60
        with pytest.raises(MemoryFull):
            await Client(limited).run([bytes(10)])
        gate.set()
        await asyncio.gather(*(upload.task for upload in complete))
        assert sent == [MB, 0], "an answer that nobody reads holds no body"

    play(steps)


def test_many_that_need_room_at_once_all_get_what_one_gives_back(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        stalled = [Upload(app), Upload(app)]
        for upload in stalled:
            await upload.send(MB)
        clock.now += 2
        answers = await asyncio.gather(*(Client(app).run([bytes(1000)]) for _ in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert sum(upload.is_refused for upload in stalled) == 1

    play(steps)


def test_a_body_that_is_read_on_after_its_answer_has_begun_makes_room_too(clock: Clock) -> None:
    async def steps(_: Any, of: Any) -> None:
        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await receive()).get("more_body"):
                pass

        limited = BodyLimitMiddleware(inner, of)
        uploads = [Upload(limited), Upload(limited)]
        for upload in uploads:
            await upload.send(10)
            await upload.send(MB - 10)
        clock.now += 2
        assert (await Client(limited).run([bytes(1000)])).status == 200
        assert sum(upload.is_refused for upload in uploads) == 1

    play(steps)


def test_where_no_body_of_this_process_is_slow_another_process_is_asked(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        asked: list[int] = []
        of.want_memory = lambda: asked.append(1)
        limited = BodyLimitMiddleware(app_of(count_bytes), of)
        assert of.budgets.bodies.take(2 * MB)  # the bodies of another process
        with pytest.raises(MemoryFull):
            await Client(limited).run([bytes(10)])
        assert asked == [1]
        of.budgets.bodies.give(MB)
        own = Upload(limited)
        await own.send(MB)
        clock.now += 2
        assert (await Client(limited).run([bytes(10)])).status == 200
        assert own.is_refused and asked == [1], "a slow body of its own comes first"

    play(steps)


def test_another_process_that_wants_memory_gets_that_of_a_slow_body(clock: Clock) -> None:
    async def steps(app: Any, of: Any) -> None:
        smaller, larger = Upload(app), Upload(app)
        await smaller.send(MB // 2)
        await larger.send(MB)
        of.on_memory_wanted()
        await turn()
        assert not larger.task.done(), "none is slow yet"
        clock.now += 2
        for _ in range(3):
            of.on_memory_wanted()
        await turn()
        assert larger.is_refused and not smaller.task.done()
        assert gauge(of, "mae_inflight_bytes") == MB // 2

    play(steps)
