"""Messages between processes arrive whole and in order."""

import asyncio
import socket
from typing import Any

import orjson
import pytest
import uvloop

from service.workers.channel import Channel, receive_first
from service.workers.messages import HEAD, Kind


class Recorder(Channel):
    """Records the messages that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Kind, bytes]] = []

    def message_received(self, kind: Kind, content: memoryview) -> None:
        self.messages.append((kind, bytes(content)))

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.messages) < count:
                await asyncio.sleep(0.001)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Runs a coroutine on either loop: the transports of one are no asyncio.Transport."""

    def run(work: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(work, 60))

    return run


def test_both_sides_receive_messages_in_order(run: Any) -> None:
    async def main() -> None:
        ends, (first, second) = socket.socketpair(), (Recorder(), Recorder())
        first.send(Kind.SETTINGS, b"sent before there is a connection")
        for recorder, end in zip((first, second), ends, strict=True):
            await recorder.connect(end)
        large = bytes(range(256)) * 8192
        for number in range(50):
            first.send(Kind.DONE, b"%d" % number)
        first.send(Kind.EXPOSITION, large)
        first.send(Kind.EXIT)
        second.send(Kind.HELLO)
        await second.wait_for(53)
        await first.wait_for(1)
        assert second.messages[0] == (Kind.SETTINGS, b"sent before there is a connection")
        assert second.messages[1:51] == [(Kind.DONE, b"%d" % number) for number in range(50)]
        assert second.messages[51:] == [(Kind.EXPOSITION, large), (Kind.EXIT, b"")]
        assert first.messages == [(Kind.HELLO, b"")]
        first.close()
        await second.disconnected.wait()
        assert first.closed and not second.closed
        second.send(Kind.HELLO)  # dropped
        await asyncio.sleep(0)

    run(main())


def test_messages_may_arrive_in_pieces(run: Any) -> None:
    async def main() -> None:
        recorder, (ours, theirs) = Recorder(), socket.socketpair()
        await recorder.connect(ours)
        stream = b"".join(HEAD.pack(len(content), Kind.STATE) + content for content in (b"", b"a", b"bcd" * 30))
        for at in range(len(stream)):
            theirs.send(stream[at : at + 1])
            await asyncio.sleep(0)
        await recorder.wait_for(3)
        assert [content for _, content in recorder.messages] == [b"", b"a", b"bcd" * 30]
        theirs.close()
        await recorder.disconnected.wait()

    run(main())


def test_a_peer_that_sends_an_unknown_kind_is_disconnected(run: Any) -> None:
    async def main() -> None:
        recorder, (ours, theirs) = Recorder(), socket.socketpair()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        errors: list[Any] = []
        await recorder.connect(ours)
        theirs.send(HEAD.pack(0, 200))
        async with asyncio.timeout(5):
            await recorder.disconnected.wait()
        assert errors, "the error is reported"
        assert await asyncio.to_thread(theirs.recv, 1) == b""
        theirs.close()

    run(main())


def test_the_first_message_needs_no_loop() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        content = orjson.dumps({"port": 1})
        theirs.send(HEAD.pack(len(content), Kind.SETTINGS) + content + b"more")
        assert receive_first(ours) == {"port": 1}
        assert ours.recv(10) == b"more"


def test_a_first_message_that_is_cut_off_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.send(b"\1")
        theirs.close()
        with pytest.raises(EOFError):
            receive_first(ours)
