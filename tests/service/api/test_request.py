"""An inference request while its body is read and while its answer is made: deadline, disconnect, cancellation."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request

from service.api.middleware import RequestRecord
from service.api.request import RequestContext
from service.errors import ClientGone, DeadlinePassed, Draining, EngineLost, NotReady, QueueFull, ServiceError
from service.service import LocalService, Service
from service.settings import Settings

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


def service(timeout_s: float = 60) -> Service:
    made = LocalService(Settings(request_timeout_s=timeout_s))
    made._pipeline = object()  # type: ignore[assignment]
    return made


def request_of(made: Service, receive: Callable[[], Coroutine[Any, Any, Message]]) -> Request:
    app = FastAPI()
    app.state.service = made
    state = {"record": RequestRecord("1", "/embed")}
    return Request({"type": "http", "app": app, "headers": [], "state": state}, receive)


def context(receive: Callable[[], Coroutine[Any, Any, Message]], timeout_s: float = 60) -> RequestContext:
    return RequestContext(request_of(service(timeout_s), receive))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


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


def test_a_client_that_leaves_while_it_sends() -> None:
    async def main() -> None:
        part = {"type": "http.request", "body": b"im", "more_body": True}
        with pytest.raises(ClientGone, match="while it was sending"):
            await context(Connection(part, DISCONNECT).receive).read_body()

    run(main())


@pytest.mark.parametrize(("state", "error"), [("loading", NotReady), ("draining", Draining), ("lost", EngineLost)])
def test_a_service_that_takes_no_work(state: Any, error: type[ServiceError]) -> None:
    async def main() -> None:
        made = LocalService(Settings())
        made._state.change(state)
        with pytest.raises(error):
            RequestContext(request_of(made, Connection().receive))

    run(main())
