"""The time that a client may take to read its answer."""

from __future__ import annotations

import asyncio


class SendTimeout:
    """Aborts a connection whose client takes no byte of its answer for a while, as nginx's send_timeout does."""

    def __init__(self, seconds: float) -> None:
        """Watches no connection yet; `seconds` is the longest pause."""
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        """Watches the bytes that the client has not taken yet."""
        unread = transport.get_write_buffer_size()

        def check() -> None:
            if transport.get_write_buffer_size() < unread:
                self.start(loop, transport)
            else:
                transport.abort()

        self._timer = loop.call_later(self._seconds, check)

    def stop(self) -> None:
        """Watches no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
