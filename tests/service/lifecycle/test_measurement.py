"""The seconds of batches are measured after ready, and then the service describes and plans by them."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from fastapi.testclient import TestClient

from model.engines.base import MeasureStep, ServedModel
from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.api.app import create_app
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.images import encoded

SECONDS = BatchSeconds(lone=1.0, lanes={1: 1.0, 4: 3.9}, joined={1: 0.6})
CURVES = BatchCurves(shapes={"embed whole": SECONDS, "embed quarter": SECONDS})
PHOTOGRAPH = encoded(np.zeros((8, 8, 3), np.uint8))


class Measurement:
    """One step on both lanes, once the joined lane was made."""

    def __init__(self, engine: FakeEngine, prepare: Callable[[], None]) -> None:
        self.curves: BatchCurves | None = None
        self.threads: set[str] = set()
        self.is_abandoned = False
        self._engine, self._prepare = engine, prepare

    def prepare(self) -> None:
        self.threads.add(threading.current_thread().name)
        self._prepare()

    def next_step(self) -> MeasureStep | None:
        return None if self.curves else MeasureStep((0, 1), "embed", 1, self._run, self._record)

    def abandon(self) -> None:
        self.is_abandoned = True

    def _run(self, lane: int) -> float:
        self.threads.add(threading.current_thread().name)
        return 1.0

    def _record(self, seconds: float) -> None:
        self.curves = CURVES
        changes = {"batch_curves": CURVES, "joined": True, "preferred_batch": 4}
        self._engine.info = self._engine.info.model_copy(update=changes)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


def test_the_description_of_the_engine_has_what_was_measured_after_ready() -> None:
    engine, prepared = FakeEngine(2, lanes=2), threading.Event()
    measurement = Measurement(engine, lambda: prepared.wait(10) and None)
    app = create_app(Settings(), lambda settings, progress: ServedModel(engine, measurement=measurement))
    with TestClient(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/info").json()["engine"]["batch_curves"] is None
        assert client.post("/embed", content=PHOTOGRAPH).status_code == 200
        prepared.set()
        wait_until(lambda: client.get("/info").json()["engine"]["joined"])
        info = client.get("/info").json()
        assert info["engine"]["batch_curves"]["shapes"]["embed whole"]["joined"] == {"1": 0.6}
        assert info["engine"]["preferred_batch"] == 4
        assert client.post("/embed", content=PHOTOGRAPH).status_code == 200
    assert measurement.threads == {"prepare-measurement", "lane-0", "lane-1"}


def test_a_joined_lane_that_cannot_be_made_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(2, lanes=2)

    def fail() -> None:
        raise MemoryError("no room for the joined lane")

    measurement = Measurement(engine, fail)
    app = create_app(Settings(), lambda settings, progress: ServedModel(engine, measurement=measurement))
    with TestClient(app) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        wait_until(lambda: "no room for the joined lane" in caplog.text)
        assert client.post("/embed", content=PHOTOGRAPH).status_code == 200
    assert measurement.threads == {"prepare-measurement"} and measurement.is_abandoned
