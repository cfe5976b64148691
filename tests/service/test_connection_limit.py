"""How many connections a process may take, with its limit on open files pretended."""

import resource

import pytest

from service.connection_limit import OTHER_FILES, RESERVED_CONNECTIONS, connections_per_process
from service.settings import InvalidSettings, Settings

BESIDE = RESERVED_CONNECTIONS + OTHER_FILES
UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit of this process."""
    limits = [1024, 1024]

    def set_limits(kind: int, new: tuple[int, int]) -> None:
        assert kind == resource.RLIMIT_NOFILE and new[1] == limits[1]
        assert limits[1] == UNLIMITED or new[0] <= limits[1]
        limits[:] = new

    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    return limits


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised"),
    [
        (1024, 1024, 1024 - BESIDE, 1024),
        (1024, 524_288, 2000, 2000 + BESIDE),
        (1024, UNLIMITED, 2000, 2000 + BESIDE),
        (1_048_576, 1_048_576, 2000, 1_048_576),
        (UNLIMITED, UNLIMITED, 2000, UNLIMITED),
        (64, 64, 8, 64),
    ],
)
def test_by_default_as_many_as_open_files_allow(
    files: list[int], soft: int, hard: int, connections: int, raised: int
) -> None:
    files[:] = soft, hard
    assert connections_per_process(Settings()) == connections
    assert files == [raised, hard]


def test_workers_divide_them(files: list[int]) -> None:
    assert connections_per_process(Settings(http_workers=4)) == 500
    assert connections_per_process(Settings(http_workers=3, max_connections=100)) == 34


def test_a_setting_that_needs_more_files_than_there_may_be_stops_the_start(files: list[int]) -> None:
    assert connections_per_process(Settings(max_connections=1024 - BESIDE)) == 1024 - BESIDE
    with pytest.raises(InvalidSettings, match=r"^MAX_CONNECTIONS: 1000 connections .* need 1128 open files, .* 1024$"):
        connections_per_process(Settings(max_connections=1000))
