"""An inference request while its body is read and while its answer is made: deadline, disconnect, cancellation."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from service.api import bodies
from service.api.bodies import ImagesBody
from service.api.middleware import RequestRecord
from service.api.request import RequestContext
from service.errors import (
    ClientGone,
    DeadlinePassed,
    Draining,
    EngineLost,
    NotReady,
    QueueFull,
    RequestStalled,
    ServiceError,
    UnsupportedType,
)
from service.service import LocalService, Service
from service.settings import Settings
from tests.support.virtual_loop import run_virtual

Message = dict[str, Any]
LAST: Message = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: Message = {"type": "http.disconnect"}


class Connection:
    """The reading side of a connection: gives `messages`, then waits until it is closed."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.closed = asyncio.Event()

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await self.closed.wait()
        return DISCONNECT


def service(timeout_s: float = 60, **settings: Any) -> Service:
    made = LocalService(Settings(request_timeout_s=timeout_s, **settings))
    made._pipeline = object()  # type: ignore[assignment]
    return made


def request_of(
    made: Service, receive: Callable[[], Coroutine[Any, Any, Message]], headers: dict[str, str] | None = None
) -> Request:
    app = FastAPI()
    app.state.service = made
    state = {"record": RequestRecord("1", "/embed")}
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return Request({"type": "http", "app": app, "headers": pairs, "state": state}, receive)


def context(receive: Callable[[], Coroutine[Any, Any, Message]], timeout_s: float = 60) -> RequestContext:
    return RequestContext(request_of(service(timeout_s), receive))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


class Work:
    """Waits for `gate`, and takes a moment to end when it is cancelled."""

    def __init__(self) -> None:
        self.started, self.gate = asyncio.Event(), asyncio.Event()
        self.ended = ""

    async def run(self) -> str:
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.ended = "cancelled"
            raise
        self.ended = "finished"
        return "result"


async def nobody_else_left() -> bool:
    await asyncio.sleep(0)
    return asyncio.all_tasks() == {asyncio.current_task()}


def test_the_result_of_the_work() -> None:
    async def main() -> None:
        work = Work()
        work.gate.set()
        assert await context(Connection().receive).run_while_client_waits(work.run()) == "result"
        await asyncio.sleep(0)
        assert await nobody_else_left()

    asyncio.run(main())


@pytest.mark.parametrize("error", [QueueFull("full"), TimeoutError("the work's own"), ZeroDivisionError()])
def test_the_error_of_the_work(error: Exception) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> None:
        with pytest.raises(type(error)) as raised:
            await context(Connection().receive).run_while_client_waits(fail())
        assert raised.value is error

    run(main())


def test_a_client_that_leaves_cancels_the_work_before_the_request_ends() -> None:
    async def main() -> None:
        work, connection = Work(), Connection(LAST, LAST)
        running = asyncio.create_task(context(connection.receive).run_while_client_waits(work.run()))
        await work.started.wait()
        connection.closed.set()
        with pytest.raises(ClientGone, match="closed the connection while it was waiting"):
            await running
        assert work.ended == "cancelled"

    run(main())


def test_the_deadline_cancels_the_work_before_the_request_ends() -> None:
    async def main() -> None:
        work = Work()
        with pytest.raises(DeadlinePassed, match="not ready in time"):
            await context(Connection().receive, timeout_s=0.01).run_while_client_waits(work.run())
        assert work.ended == "cancelled"

    run(main())


def test_a_result_counts_although_the_client_leaves_at_that_moment() -> None:
    async def main() -> None:
        work, connection = Work(), Connection()
        running = asyncio.create_task(context(connection.receive).run_while_client_waits(work.run()))
        await work.started.wait()
        work.gate.set()
        connection.closed.set()
        assert await running == "result"

    run(main())


def test_a_request_that_is_cancelled_cancels_its_work() -> None:
    async def main() -> None:
        work = Work()
        running = asyncio.create_task(context(Connection().receive).run_while_client_waits(work.run()))
        await work.started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert work.ended == "cancelled"
        await asyncio.sleep(0)
        assert await nobody_else_left()

    asyncio.run(main())


def test_an_error_of_the_connection_ends_the_wait() -> None:
    async def main() -> None:
        async def receive() -> Message:
            raise ConnectionResetError("by peer")

        work = Work()
        with pytest.raises(ConnectionResetError):
            await context(receive).run_while_client_waits(work.run())
        assert work.ended in ("cancelled", "")

    run(main())


def test_a_body_and_the_time_it_took() -> None:
    async def main() -> None:
        chunks = [{"type": "http.request", "body": part, "more_body": True} for part in (b"im", b"age")]
        of = context(Connection(*chunks, LAST).receive)
        assert (await of.read_body()).images == [b"image"]
        assert of.record.images == 1 and of.record.read > 0

    run(main())


def test_a_body_that_does_not_arrive_in_time() -> None:
    async def main() -> None:
        with pytest.raises(DeadlinePassed, match="the body did not arrive in time"):
            await context(Connection().receive, timeout_s=0.01).read_body()

    run(main())


PART: Message = {"type": "http.request", "body": b"im", "more_body": True}


@pytest.mark.parametrize("parts", [[], [PART], [PART] * 5])
def test_a_body_that_stalls_is_cut_off(parts: list[Message]) -> None:
    async def main() -> None:
        of = RequestContext(request_of(service(body_stall_s=0.01), Connection(*parts).receive))
        with pytest.raises(RequestStalled, match="no byte of the body has arrived for") as refusal:
            await of.read_body()
        assert refusal.value.headers["connection"] == "close"

    run(main())


def test_a_body_may_take_longer_than_a_stall() -> None:
    async def main() -> None:
        pieces = 40

        async def receive() -> Message:
            nonlocal pieces
            await asyncio.sleep(5)
            pieces -= 1
            return {**PART, "more_body": pieces > 0}

        with mock.patch("service.api.request.time", SimpleNamespace(monotonic=asyncio.get_running_loop().time)):
            request = request_of(service(600, body_stall_s=6), receive)
            request.state.record.started = asyncio.get_running_loop().time()
            of = RequestContext(request)
            assert (await of.read_body()).images == [b"im" * 40]
            assert of.record.read == 40 * 5

    run_virtual(main())


def test_a_body_that_has_arrived_may_take_its_time_to_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(text: bytes, *options: Any) -> ImagesBody:
        time.sleep(0.1)  # in a thread
        return ImagesBody([text])

    monkeypatch.setattr(bodies, "_parse_json", parse)

    async def main() -> None:
        json = {"content-type": "application/json"}
        receive = Connection({**PART, "more_body": False}).receive
        of = RequestContext(request_of(service(body_stall_s=0.01), receive, json))
        assert (await of.read_body()).images == [b"im"]

    run(main())


def test_the_deadline_may_come_before_the_stall() -> None:
    async def main() -> None:
        of = RequestContext(request_of(service(timeout_s=0.01, body_stall_s=10), Connection(PART).receive))
        with pytest.raises(DeadlinePassed, match="the body did not arrive in time"):
            await of.read_body()

    run(main())


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "br", "identity, gzip", "GZIP"])
def test_a_compressed_body_is_refused_unread(encoding: str) -> None:
    async def main() -> None:
        async def receive() -> Message:
            raise AssertionError("read")

        headers = {"content-encoding": encoding, "content-type": "image/jpeg"}
        with pytest.raises(UnsupportedType, match=f"Content-Encoding {encoding.lower()}") as refusal:
            await RequestContext(request_of(service(), receive, headers)).read_body()
        assert refusal.value.details == {"encoding": encoding.lower()}

    run(main())


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_body_that_says_it_is_not_compressed(encoding: str) -> None:
    async def main() -> None:
        receive = Connection({**PART, "more_body": False}).receive
        of = RequestContext(request_of(service(), receive, {"content-encoding": encoding}))
        assert (await of.read_body()).images == [b"im"]

    run(main())


@pytest.mark.parametrize(("state", "error"), [("draining", Draining), ("lost", EngineLost)])
def test_the_end_of_the_process_interrupts_an_upload(state: Any, error: type[ServiceError]) -> None:
    async def main() -> None:
        made = service(body_stall_s=3600)
        reading = asyncio.create_task(RequestContext(request_of(made, Connection(PART).receive)).read_body())
        await asyncio.sleep(0)
        made._state.change(state, "why")
        await asyncio.sleep(0)
        assert not reading.done()
        made._state.exit(0)
        with pytest.raises(error) as refusal:
            await reading
        assert refusal.value.status == 503 and refusal.value.headers["connection"] == "close"
        assert not made.interrupts

    run(main())


@pytest.mark.parametrize(("state", "error"), [("draining", Draining), ("lost", EngineLost)])
def test_the_end_of_the_process_interrupts_work_that_hangs(state: Any, error: type[ServiceError]) -> None:
    """A decode that takes minutes: nobody could wait for its thread."""

    async def main() -> None:
        made, work = service(), Work()
        of = RequestContext(request_of(made, Connection().receive))
        running = asyncio.create_task(of.run_while_client_waits(work.run()))
        await work.started.wait()
        made._state.change(state, "why")
        made._state.exit(0)
        with pytest.raises(error):
            await running
        assert work.ended == "cancelled" and not made.interrupts

    run(main())


def test_a_client_that_leaves_while_it_sends() -> None:
    async def main() -> None:
        with pytest.raises(ClientGone, match="while it was sending"):
            await context(Connection(PART, DISCONNECT).receive).read_body()

    run(main())


@pytest.mark.parametrize(("state", "error"), [("loading", NotReady), ("draining", Draining), ("lost", EngineLost)])
def test_a_service_that_takes_no_work(state: Any, error: type[ServiceError]) -> None:
    async def main() -> None:
        made = LocalService(Settings())
        made._state.change(state)
        with pytest.raises(error):
            RequestContext(request_of(made, Connection().receive))

    run(main())
