"""The limits on bodies, called in plain ASGI."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.api import body_limit
from service.api.body_limit import BodyLimitMiddleware
from service.errors import BodyTooLarge, Draining, MemoryFull, RequestStalled
from tests.support.asgi import MB, Client, Headers, app_of, count_bytes, gauge, run, service


def test_a_body_may_have_exactly_the_limit() -> None:
    of = service()
    client = Client(BodyLimitMiddleware(app_of(count_bytes), of), headers={"content-length": str(MB)})
    assert run(client.run([bytes(MB)])).messages[1]["body"] == b"1000000"
    assert gauge(of, "mae_inflight_bytes") == 0


def test_a_body_that_declares_too_much_is_refused_unread() -> None:
    of = service()
    client = Client(BodyLimitMiddleware(app_of(count_bytes), of), headers={"content-length": str(MB + 1)})
    with pytest.raises(BodyTooLarge, match="more than 1000000 bytes") as refusal:
        run(client.run([bytes(MB + 1)]))
    assert client.sent == 0
    assert refusal.value.status == 413
    assert gauge(of, "mae_inflight_bytes") == 0


@pytest.mark.parametrize("declared", [{}, {"content-length": "3"}, {"content-length": "many"}])
def test_a_body_that_does_not_say_or_lies_is_refused_where_it_is_too_much(declared: Headers) -> None:
    of = service()
    client = Client(BodyLimitMiddleware(app_of(count_bytes), of), headers=declared)
    with pytest.raises(BodyTooLarge):
        run(client.run([bytes(MB // 4)] * 100))
    assert client.sent == 5
    assert gauge(of, "mae_inflight_bytes") == 0


def test_bodies_count_until_they_are_answered() -> None:
    async def main() -> None:
        of, gate = service(), asyncio.Event()

        async def wait(request: Request) -> Response:
            body = await request.body()
            await gate.wait()
            return Response(str(len(body)))

        app = BodyLimitMiddleware(app_of(wait), of)
        first, second = Client(app, headers={"content-length": str(MB)}), Client(app)
        tasks = [asyncio.create_task(first.run([bytes(MB // 2)] * 2)), asyncio.create_task(second.run([bytes(10)] * 3))]
        while second.sent < 3:
            await asyncio.sleep(0)
        assert gauge(of, "mae_inflight_bytes") == MB + 30
        late = Client(app, headers={"content-length": str(MB)})
        with pytest.raises(MemoryFull) as refusal:
            await late.run([bytes(MB)])
        assert late.sent == 1
        assert (refusal.value.status, refusal.value.headers["retry-after"]) == (429, "1")
        grown = Client(app)
        with pytest.raises(MemoryFull):
            await grown.run([bytes(MB // 2)] * 2)
        assert grown.sent == 2
        assert gauge(of, "mae_inflight_bytes") == MB + 30, "the refused ones hold nothing"
        gate.set()
        await asyncio.gather(*tasks)
        assert gauge(of, "mae_inflight_bytes") == 0
        assert (await Client(app).run([bytes(MB)])).status == 200

    run(main())


def test_what_is_only_declared_takes_no_room() -> None:
    async def main() -> None:
        of = service()
        app = BodyLimitMiddleware(app_of(count_bytes), of)
        declared = {"content-length": str(MB)}
        stalled = [asyncio.create_task(Client(app, headers=declared).run([b"x"], endless=True)) for _ in range(8)]
        await asyncio.sleep(0.01)
        assert gauge(of, "mae_inflight_bytes") == 8
        assert (await Client(app, headers=declared).run([bytes(MB)])).status == 200
        for task in stalled:
            task.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        assert gauge(of, "mae_inflight_bytes") == 0

    run(main())


def test_bytes_are_given_back_after_an_exception() -> None:
    of = service()

    async def fail(request: Request) -> Response:
        await request.body()
        assert gauge(of, "mae_inflight_bytes") == 5
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Client(BodyLimitMiddleware(app_of(fail), of)).run([b"hello"]))
    assert gauge(of, "mae_inflight_bytes") == 0


def test_a_request_without_a_body_is_not_counted() -> None:
    of = service()
    client = Client(BodyLimitMiddleware(app_of(count_bytes), of), method="GET", headers={"content-length": str(2 * MB)})
    assert run(client.run()).status == 200


async def leave(request: Request) -> Response:
    return Response(status_code=503, headers=Draining("").headers)


def test_a_client_may_finish_sending_before_its_connection_is_closed() -> None:
    client = Client(BodyLimitMiddleware(app_of(leave), service()))
    run(client.run([b"x"] * 50))
    assert client.sent == 50
    assert client.status == 503


def test_a_client_that_never_finishes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "DISCARD_S", 0.05)
    client = Client(BodyLimitMiddleware(app_of(leave), service()))
    run(client.run([b"x"], endless=True))
    assert client.status == 503


def test_a_client_that_has_stalled_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "DISCARD_S", 3600.0)

    async def stall(request: Request) -> Response:
        return Response(status_code=408, headers=RequestStalled("").headers)

    client = Client(BodyLimitMiddleware(app_of(stall), service()))
    run(client.run([b"x"], endless=True))
    assert client.status == 408 and client.sent == 0


def test_at_the_end_of_the_process_a_client_that_sends_is_hardly_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "DISCARD_S", 3600.0)
    monkeypatch.setattr(body_limit, "LAST_DISCARD_S", 0.01)

    async def main() -> None:
        of = service()
        before = Client(BodyLimitMiddleware(app_of(leave), of))
        waiting = asyncio.create_task(before.run([b"x"], endless=True))
        while not of.interrupts:
            await asyncio.sleep(0)
        of._state.exit(0)
        await waiting
        after = await Client(BodyLimitMiddleware(app_of(leave), of)).run([b"x"], endless=True)
        assert before.status == after.status == 503 and not of.interrupts

    run(main())


def test_an_answer_on_an_open_connection_does_not_wait_for_the_body() -> None:
    async def refuse(request: Request) -> Response:
        return Response(status_code=422)

    client = Client(BodyLimitMiddleware(app_of(refuse), service()))
    run(client.run([b"x"] * 50))
    assert client.sent == 0
