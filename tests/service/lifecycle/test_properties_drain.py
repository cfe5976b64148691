"""Any requests around a signal, in virtual time: a drain waits for those that were accepted, and no longer."""

import asyncio
import signal
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Draining, NotReady
from service.lifecycle.engine_lifecycle import POLL_S, QUIET_S
from service.service import LocalService
from service.settings import Settings
from tests.support.virtual_loop import run_virtual

QUARTERS = st.integers(0, 40).map(lambda quarters: quarters / 4)


@given(st.lists(st.tuples(QUARTERS, QUARTERS), max_size=6), QUARTERS, st.integers(1, 8))
def test_a_drain(requests: list[tuple[float, float]], signal_at: float, timeout: int) -> None:
    ended: list[tuple[float, float]] = []

    async def main() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        service = LocalService(Settings(drain_timeout_s=timeout))
        in_flight = service.budgets.requests

        async def request(at: float, seconds: float) -> None:
            await asyncio.sleep(at)
            in_flight.take(1)
            try:
                if at < signal_at:
                    with pytest.raises(NotReady):  # nothing is loaded here; it is no refusal of the drain
                        _ = service.pipeline
                    await asyncio.sleep(seconds)
                    ended.append((at, loop.time() - start))
                elif at > signal_at:
                    with pytest.raises(Draining):
                        _ = service.pipeline
            finally:
                in_flight.give(1)

        with mock.patch("service.lifecycle.engine_lifecycle.time", SimpleNamespace(monotonic=loop.time)):
            tasks = [asyncio.create_task(request(*times)) for times in requests]
            await asyncio.sleep(signal_at)
            service.handle_signal(signal.SIGTERM)
            assert service.state == "draining"
            service.handle_signal(signal.SIGTERM)  # a second one changes nothing
            while service.exit_code is None:
                await asyncio.sleep(POLL_S / 2)
            assert service.exit_code == 0
            exited = loop.time() - start
            cut_off = in_flight.used
            await asyncio.gather(*tasks)
            await service.close()
        late = [end for at, end in ended if end > exited]
        assert bool(late) <= (exited >= signal_at + timeout) and cut_off <= len(late)
        return exited

    exited = run_virtual(main())
    last = max([signal_at, *(end for _, end in ended)])
    expected = min(signal_at + timeout, last + QUIET_S)
    assert expected - POLL_S <= exited <= expected + 3 * POLL_S
