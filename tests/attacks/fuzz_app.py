"""The real app with a fake engine, and connections to it by the real protocol class, in this process."""

from __future__ import annotations

import asyncio
import functools
import logging

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.engines.base import ServedModel
from service.api.app import create_app
from service.connection_limit import ConnectionLimit
from service.http_protocol import HttpProtocol
from service.settings import Settings
from tests.support.connections import Transport
from tests.support.engines import SMALL, FakeEngine

ANSWER_S = 30.0


class UnexpectedAnswer(Exception):
    """An answer of status 500 or more, an error in the log, or no answer."""


class App:
    """The app, and connections to it."""

    def __init__(self) -> None:
        config = HeadConfig(pool="mean", classes=("a", "b"))
        engine = FakeEngine()
        engine.info = engine.info.model_copy(update={"head": config})
        head = Head(config, np.ones((2, SMALL.embed_dim), np.float32), np.zeros(2, np.float32))
        settings = Settings(
            max_pixels=1_000_000, max_images=8, max_body_mb=1, request_timeout_s=ANSWER_S, predict_route="/predict"
        )
        self._app = create_app(settings, lambda *_: ServedModel(engine, Heads(head)))
        self._make = functools.partial(HttpProtocol, ConnectionLimit(100), 600.0, 600.0)
        self._config = uvicorn.Config(
            self._app, http=self._make, interface="asgi3", ws="none", lifespan="off", log_config=None
        )
        self._config.load()
        self._errors: list[logging.LogRecord] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = self._errors.append  # type: ignore[method-assign]
        logging.getLogger().handlers[:] = [handler]
        self._loop = asyncio.new_event_loop()
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        while b" 200 " not in self.exchange(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"):
            pass

    def exchange(self, *pieces: bytes) -> bytes:
        """What is written when `pieces` arrive and the connection then ends.

        Raises:
            UnexpectedAnswer: as its class says.
        """
        written = self._loop.run_until_complete(self._exchange(pieces))
        if self._errors:
            record, self._errors[:] = self._errors[0], []
            raise UnexpectedAnswer(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)
        return written

    async def _exchange(self, pieces: tuple[bytes, ...]) -> bytes:
        state, transport = ServerState(), Transport()
        loop = asyncio.get_running_loop()
        protocol = self._make(config=self._config, server_state=state, app_state={}, _loop=loop)
        protocol.connection_made(transport)
        for piece in pieces:
            if not transport.closed:
                protocol.data_received(piece)
            await asyncio.sleep(0)
        if state.tasks and not protocol._in_body:
            await asyncio.wait(state.tasks, timeout=ANSWER_S)
        protocol.connection_lost(None)
        if state.tasks and (await asyncio.wait(state.tasks, timeout=ANSWER_S))[1]:
            raise UnexpectedAnswer("a request has not ended")
        for status in (b"500", b"502", b"503", b"504"):
            if b"HTTP/1.1 " + status in transport.written:
                raise UnexpectedAnswer(transport.written.decode("latin-1")[:2000])
        return transport.written
