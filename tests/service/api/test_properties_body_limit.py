"""Any bodies that arrive at once, in virtual time: their bytes count while they are held, up to the limits."""

import asyncio
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.api.body_limit import BodyLimitMiddleware
from service.errors import BodyTooLarge, MemoryFull
from tests.support.asgi import MB, app_of, service
from tests.support.virtual_loop import run_virtual

UNIT = MB // 8
BODY, ALL = 8, 20
"""The limits of one body and of all together, in units."""


class Body(NamedTuple):
    """A body that arrives in pieces."""

    at: int
    pieces: list[tuple[int, int]]
    """The pause before each piece in seconds, and its units."""
    declares: bool
    leaves: bool
    """Whether the client closes the connection instead of sending the last piece."""
    seconds: int
    """The time that its answer takes."""


PIECES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=5)
BODIES = st.builds(Body, st.integers(0, 4), PIECES, st.booleans(), st.booleans(), st.integers(0, 4))


@given(st.lists(BODIES, min_size=1, max_size=8))
def test_bodies(bodies: list[Body]) -> None:
    of = service(max_body_mb=BODY * UNIT / MB, max_inflight_mb=ALL * UNIT / MB)
    budget = of.budgets.bodies
    held = [0] * len(bodies)
    """The units of each body that have arrived and are not answered."""

    def require_held() -> None:
        assert budget.used == sum(held) * UNIT <= ALL * UNIT

    async def send_body(number: int, body: Body) -> None:
        await asyncio.sleep(body.at + number / 100)
        pieces = iter(body.pieces)
        left = len(body.pieces)
        total = sum(units for _, units in body.pieces)

        async def handle(request: Request) -> Response:
            assert len(await request.body()) == total * UNIT
            await asyncio.sleep(body.seconds)
            return Response()

        async def receive() -> dict[str, Any]:
            nonlocal left
            require_held()
            pause, units = next(pieces)
            await asyncio.sleep(pause)
            left -= 1
            if not left and body.leaves:
                return {"type": "http.disconnect"}
            fits = held[number] + units <= BODY and sum(held) + units <= ALL
            held[number] += units if fits else 0
            return {"type": "http.request", "body": bytes(units * UNIT), "more_body": left > 0}

        async def send(message: Any) -> None:
            assert message["type"] != "http.response.start" or (message["status"] == 200 and total <= BODY)

        declared = [(b"content-length", str(total * UNIT).encode())] if body.declares else []
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": declared, "query_string": b""}
        app = BodyLimitMiddleware(app_of(handle), of)
        try:
            await app(scope, receive, send)
        except BodyTooLarge:
            assert total > BODY
        except MemoryFull:
            assert sum(held) + max(units for _, units in body.pieces) > ALL
        except ClientDisconnect:
            assert body.leaves
        finally:
            held[number] = 0

    async def main() -> None:
        await asyncio.gather(*(send_body(number, body) for number, body in enumerate(bodies)))
        assert budget.used == 0

    # No body is slow here, whatever the machine does meanwhile: test_body_memory.py has the slow ones.
    with mock.patch("service.api.body_memory.time", SimpleNamespace(monotonic=lambda: 0.0)):
        run_virtual(main())
