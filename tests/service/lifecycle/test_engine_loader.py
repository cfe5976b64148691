"""An engine is built beside the event loop, and what becomes of it is told on the loop."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from model.checkpoints.errors import WeightsError
from model.engines.base import EngineBuildError, ServedModel
from service.lifecycle.engine_loader import EngineLoader
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.queueing import run

SETTINGS = Settings().engine


class Outcome:
    """What a loader has told."""

    def __init__(self, build: Callable[..., Any], on_loaded: Callable[[Any], None] | None = None) -> None:
        self.progress: list[str] = []
        self.engines: list[Any] = []
        self.failures: list[str] = []
        on_loaded = on_loaded or self.engines.append
        self.loader = EngineLoader(SETTINGS, build, self.progress.append, on_loaded, self.failures.append)


def raising(error: Exception) -> Callable[..., Any]:
    def build(settings: Any, report: Any) -> Any:
        raise error

    return build


def test_the_engine_is_built_in_a_daemon_thread() -> None:
    engine, builders = FakeEngine(), []

    def build(settings: Any, report: Callable[[str], None]) -> Any:
        assert settings == SETTINGS
        builders.append(threading.current_thread())
        report("compiling")
        return engine

    outcome = Outcome(build)
    run(outcome.loader.load())
    assert outcome.engines == [engine] and outcome.progress == ["compiling"] and not outcome.failures
    assert builders[0].daemon and builders[0] is not threading.current_thread()


@pytest.mark.parametrize("error", [WeightsError("no such file"), EngineBuildError("out of memory")])
def test_an_expected_failure_is_told_in_one_sentence(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    outcome = Outcome(raising(error))
    run(outcome.loader.load())
    assert outcome.failures == [f"the engine cannot be loaded: {error}"] and not outcome.engines
    assert "Traceback" not in caplog.text


def test_an_unforeseen_failure_leaves_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    outcome = Outcome(raising(RuntimeError("out of luck")))
    run(outcome.loader.load())
    assert outcome.failures == ["the engine cannot be loaded: out of luck"]
    assert "RuntimeError" in caplog.text


def test_an_engine_that_cannot_be_opened_has_failed_to_load() -> None:
    def refuse(engine: Any) -> None:
        raise AttributeError("it has no lanes")

    outcome = Outcome(lambda settings, report: ServedModel(FakeEngine()), refuse)
    run(outcome.loader.load())
    assert outcome.failures == ["the engine cannot be loaded: it has no lanes"]


def test_a_build_that_ends_after_the_loop_disturbs_nobody() -> None:
    release = threading.Event()

    def build(settings: Any, report: Any) -> Any:
        release.wait(60)
        return ServedModel(FakeEngine())

    outcome = Outcome(build)

    async def main() -> None:
        loading = asyncio.ensure_future(outcome.loader.load())
        await asyncio.sleep(0)
        loading.cancel()

    run(main())
    [builder] = [thread for thread in threading.enumerate() if thread.name == "load"]
    release.set()
    builder.join(5)
    assert not builder.is_alive() and not outcome.engines and not outcome.failures
