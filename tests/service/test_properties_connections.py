"""Any order of connections that come, answer and go: the limit and its reserve keep their bounds."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.connection_limit import ConnectionLimit

RESERVE = 3


@dataclass(eq=False)
class Connection:
    """A connection that the server may abort."""

    is_answering: bool = False
    is_reserve: bool = False
    is_aborted: bool = False
    transport: Any = field(init=False)

    def __post_init__(self) -> None:
        self.transport = self

    def abort(self) -> None:
        assert not self.is_aborted
        self.is_aborted = True


@pytest.fixture(scope="module", autouse=True)
def _small_reserve() -> Iterator[None]:
    with mock.patch("service.connection_limit.RESERVED_CONNECTIONS", RESERVE):
        logging.getLogger("service.connection_limit").disabled = True
        yield
        logging.getLogger("service.connection_limit").disabled = False


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["open", "open", "open", "close", "answer"]), st.integers(0, 99)), max_size=60),
)
def test_the_limit(most: int, steps: list[tuple[str, int]]) -> None:
    limit = ConnectionLimit(most)
    there: list[Connection] = []
    """Open connections, the oldest first; aborted ones until the server hears of their end."""
    for step, number in steps:
        if step == "open":
            new = Connection()
            reserve = [one for one in there if one.is_reserve and not one.is_aborted]
            new.is_reserve = limit.open(new)
            assert new.is_reserve == (len(there) >= most)
            there.append(new)
            aborted = [one for one in reserve if one.is_aborted]
            if new.is_reserve and len(reserve) == RESERVE:
                idle = [one for one in reserve if not one.is_answering]
                assert aborted == (idle or reserve)[:1], "the oldest one that answers nothing, else the oldest"
            else:
                assert not aborted
        elif there and step == "close":
            limit.close(cast(Any, there.pop(number % len(there))))
        elif there:
            there[number % len(there)].is_answering ^= True
        open_ones = [one for one in there if not one.is_aborted]
        assert sum(one.is_reserve for one in open_ones) <= RESERVE
        assert not any(one.is_aborted for one in there if not one.is_reserve)
