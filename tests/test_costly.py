"""What a cheap test may not do, by every way to do it."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from tests.support.costly import refuse_conversions, refuse_processes


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"], check=True),
        lambda: subprocess.Popen(["true"]),
        fork,
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.system("true"),
        lambda: multiprocessing.get_context("fork").Process(target=int).start(),
    ],
    ids=["run", "Popen", "fork", "posix_spawn", "system", "multiprocessing"],
)
def test_a_cheap_test_starts_no_process(start) -> None:
    with refuse_processes(), pytest.raises(pytest.fail.Exception, match="needs the marker 'live'"):
        start()


@pytest.mark.live
def test_a_costly_one_does() -> None:
    assert subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, check=True).stdout == b"7\n"


def test_nothing_is_exported_or_converted_in_a_fast_run() -> None:
    with refuse_conversions():
        import openvino
        import torch

        for convert in (lambda: torch.export.export(torch.nn.ReLU(), (torch.ones(1),)), openvino.convert_model):
            with pytest.raises(pytest.fail.Exception, match="needs the marker 'converts'"):
                convert()


def test_the_markers_are_applied(request: pytest.FixtureRequest) -> None:
    """By where a test lies and by the fixtures that it uses, as far as this run has collected them."""
    items = {item.nodeid: item for item in request.session.items}
    live = [item for name, item in items.items() if name.startswith("tests/live/")]
    assert all(item.get_closest_marker("live") for item in live)
    assert not [name for name in items if name.startswith("tests/live/") and request.config.getoption("--fast")]
