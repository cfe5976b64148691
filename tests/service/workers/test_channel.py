"""Messages between processes: whole, in order, and an error is the same on the other side."""

import asyncio
import socket
from typing import Any

import orjson
import pytest
import uvloop

from service.errors import InferenceFailed, QueueFull, ServiceError
from service.workers.channel import HEAD, Channel, Kind, packed_error, receive_first, unpacked_error


class Listener(Channel):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Kind, bytes]] = []

    def received(self, kind: Kind, content: memoryview) -> None:
        self.heard.append((kind, bytes(content)))

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                await asyncio.sleep(0.001)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Runs a coroutine on either loop: the transports of one are no asyncio.Transport."""

    def run(work: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(work, 10))

    return run


def test_both_sides_hear_each_other_in_order(run: Any) -> None:
    async def main() -> None:
        ends, (one, other) = socket.socketpair(), (Listener(), Listener())
        one.send(Kind.SETTINGS, b"said before there is a connection")
        for listener, end in zip((one, other), ends, strict=True):
            await listener.connect(end)
        large = bytes(range(256)) * 8192
        for number in range(50):
            one.send(Kind.DONE, b"%d" % number)
        one.send(Kind.EXPOSITION, large)
        one.send(Kind.EXIT)
        other.send(Kind.HELLO)
        await other.wait_for(53)
        await one.wait_for(1)
        assert other.heard[0] == (Kind.SETTINGS, b"said before there is a connection")
        assert other.heard[1:51] == [(Kind.DONE, b"%d" % number) for number in range(50)]
        assert other.heard[51:] == [(Kind.EXPOSITION, large), (Kind.EXIT, b"")]
        assert one.heard == [(Kind.HELLO, b"")]
        one.close()
        await other.gone.wait()
        assert one.hung_up and not other.hung_up
        other.send(Kind.HELLO)  # into the void
        await asyncio.sleep(0)

    run(main())


def test_messages_in_pieces(run: Any) -> None:
    async def main() -> None:
        listener, (ours, theirs) = Listener(), socket.socketpair()
        await listener.connect(ours)
        stream = b"".join(HEAD.pack(len(said), Kind.STATE) + said for said in (b"", b"a", b"bcd" * 30))
        for at in range(len(stream)):
            theirs.send(stream[at : at + 1])
            await asyncio.sleep(0)
        await listener.wait_for(3)
        assert [said for _, said in listener.heard] == [b"", b"a", b"bcd" * 30]
        theirs.close()
        await listener.gone.wait()

    run(main())


def test_who_sends_nonsense_is_hung_up_on(run: Any) -> None:
    async def main() -> None:
        listener, (ours, theirs) = Listener(), socket.socketpair()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        said: list[Any] = []
        await listener.connect(ours)
        theirs.send(HEAD.pack(0, 200))
        async with asyncio.timeout(5):
            await listener.gone.wait()
        assert said, "and it is said"
        assert await asyncio.to_thread(theirs.recv, 1) == b""
        theirs.close()

    run(main())


def test_the_first_message_needs_no_loop() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        said = orjson.dumps({"port": 1})
        theirs.send(HEAD.pack(len(said), Kind.SETTINGS) + said + b"more")
        assert receive_first(ours) == {"port": 1}
        assert ours.recv(10) == b"more"


def test_without_a_first_message_there_is_no_worker() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.send(b"\1")
        theirs.close()
        with pytest.raises(EOFError):
            receive_first(ours)


@pytest.mark.parametrize("kind", [ServiceError, *ServiceError.__subclasses__()])
def test_an_error_is_the_same_on_the_other_side(kind: type[ServiceError]) -> None:
    error = kind("words: ä", limit=4)
    found = unpacked_error(packed_error(error))
    assert type(found) is kind
    assert (found.body(), found.status, found.headers) == (error.body(), error.status, error.headers)


def test_errors_keep_what_they_are_about() -> None:
    assert unpacked_error(packed_error(InferenceFailed("failed", image=3))).details == {"image": 3}
    assert unpacked_error(packed_error(QueueFull("full", limit=1))).retry_after_s == 1
