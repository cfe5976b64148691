"""GPU metrics, with a driver that obeys the test. Read by prometheus-client's own parser."""

import asyncio
import logging
import sys
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from model.engines.base import ServedModel
from service import gpu_metrics
from service.api.app import create_app
from service.metrics import Metrics
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.metrics import samples

NAMES = {
    "mae_gpu_memory_used_bytes",
    "mae_gpu_memory_total_bytes",
    "mae_gpu_utilization_ratio",
    "mae_gpu_power_watts",
    "mae_gpu_temperature_celsius",
}


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class Driver:
    """A stand-in for pynvml, under pynvml's names: GPU n has 10 + n GB in use of 80, and so on."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    NVML_TEMPERATURE_GPU = 0

    def __init__(
        self, uuids: tuple[str, ...] = ("GPU-aaaa-1", "GPU-aaaa-2", "GPU-bbbb-3"), broken: bool = False
    ) -> None:
        self.uuids, self.broken = uuids, broken
        self.calls: list[str] = []
        self.refused: dict[str, type[NVMLError]] = {}
        """By name of the function (and, after a colon, the GPU it is refused for)."""
        self.hang = threading.Event()
        self.hang.set()

    def _call(self, name: str, number: int | None = None) -> None:
        self.calls.append(name)
        self.hang.wait(10)
        for key in (name, f"{name}:{number}"):
            if key in self.refused:
                raise self.refused[key](name)

    def nvmlInit(self) -> None:
        self._call("nvmlInit")
        if self.broken:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None:
        self._call("nvmlShutdown")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.uuids[handle]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid != "MIG-1234":
            raise NVMLError("Not Found")
        return 70

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int) -> int:
        return handle - 69

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._call("memory", handle)
        return SimpleNamespace(used=(10 + handle) * 10**9, total=80 * 10**9, free=0)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._call("utilization", handle)
        return SimpleNamespace(gpu=37 + handle, memory=99)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._call("power", handle)
        return 250_500 + handle

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self._call("temperature", handle)
        return 61 + handle


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


def read(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["gpu"]): sample.value
        for sample in samples(metrics.render())
        if sample.name.startswith("mae_gpu")
    }


def gpus(metrics: Metrics) -> set[str]:
    return {index for _, index in read(metrics)}


def test_every_reading_in_base_units(driver: Driver) -> None:
    readings = read(Metrics())
    assert {name for name, _ in readings} == NAMES
    assert readings["mae_gpu_memory_used_bytes", "2"] == 12e9
    assert readings["mae_gpu_memory_total_bytes", "2"] == 80e9
    assert readings["mae_gpu_utilization_ratio", "2"] == pytest.approx(0.39)
    assert readings["mae_gpu_power_watts", "0"] == pytest.approx(250.5)
    assert readings["mae_gpu_temperature_celsius", "1"] == 62


def test_readings_are_of_the_scrape_and_the_driver_is_opened_once(driver: Driver) -> None:
    metrics = Metrics()
    assert driver.calls == [], "nothing before the first scrape"
    read(metrics)
    driver.nvmlDeviceGetTemperature = lambda handle, sensor: 90  # type: ignore[method-assign]
    assert read(metrics)["mae_gpu_temperature_celsius", "0"] == 90
    metrics.close()
    assert read(metrics) == {}
    metrics.close()
    assert (driver.calls.count("nvmlInit"), driver.calls.count("nvmlShutdown")) == (1, 1)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, {"0", "1", "2"}),
        ("2", {"2"}),
        ("2, 0", {"0", "2"}),
        ("GPU-aaaa-2", {"1"}),
        ("GPU-b", {"2"}),
        ("GPU-aaaa", set()),  # of two: CUDA wants a beginning that tells one
        ("0,7,1", {"0"}),  # what follows one that does not exist is not visible
        ("-1", set()),
        ("", set()),
        ("NoDevFiles", set()),
        ("MIG-1234", {"1"}),
        ("MIG-gone", set()),
    ],
)
def test_only_what_this_process_may_use(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: set[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus(Metrics()) == expected


def test_a_slice_of_a_gpu_is_read_by_itself(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    assert read(Metrics())["mae_gpu_memory_used_bytes", "1"] == 80e9  # the stand-in's slice has the handle 70


@pytest.mark.parametrize("stand_in", [True, False])
def test_without_a_driver_nothing_is_exported_and_one_line_is_logged(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stand_in: bool
) -> None:
    driver.broken = True
    if not stand_in:  # the real one, on a machine without its library, says the same
        monkeypatch.delitem(sys.modules, "pynvml")
        pynvml = pytest.importorskip("pynvml")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            pass
        else:
            pynvml.nvmlShutdown()
            pytest.skip("there is a driver")
    metrics = Metrics()
    with caplog.at_level(logging.DEBUG, gpu_metrics.__name__):
        assert (read(metrics), read(metrics)) == ({}, {})
    assert [(record.levelname, record.getMessage().startswith("no GPU metrics")) for record in caplog.records] == [
        ("DEBUG", True)
    ]
    assert "mae_gpu" not in metrics.render().decode()
    metrics.close()


def test_what_a_card_does_not_measure_is_left_out_alone(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.refused["power:1"] = driver.refused["temperature"] = NVMLError_NotSupported
    readings = read(Metrics())
    assert ("mae_gpu_power_watts", "1") not in readings and readings["mae_gpu_power_watts", "0"] > 250
    assert {name for name, _ in readings} == NAMES - {"mae_gpu_temperature_celsius"}
    assert caplog.records == []


def test_a_lost_card_is_told_once_and_breaks_nothing(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    read(metrics)

    class Lost(NVMLError):
        def __str__(self) -> str:
            return "GPU is lost"

    driver.refused |= {f"{name}:1": Lost for name in ("memory", "power", "temperature", "utilization")}
    for _ in range(3):
        assert gpus(metrics) == {"0", "2"}
    assert "mae_ready" in metrics.render().decode()
    assert [record.getMessage() for record in caplog.records] == ["GPU 1 cannot be read: GPU is lost"]
    driver.refused.clear()
    assert gpus(metrics) == {"0", "1", "2"}


def test_a_driver_that_hangs_holds_up_one_scrape(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop goes on answering, and so does /metrics for everybody else."""
    monkeypatch.setattr(gpu_metrics, "LOCK_TIMEOUT_S", 0.1)

    async def scrape() -> None:
        app = create_app(Settings(), lambda settings, progress: ServedModel(FakeEngine()))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert "mae_gpu_power_watts" in (await client.get("/metrics")).text
            driver.hang.clear()
            hanging = asyncio.create_task(client.get("/metrics"))
            while driver.calls[-1] != "memory" or driver.calls.count("memory") < 7:
                await asyncio.sleep(0.005)
            assert (await client.get("/livez")).status_code == 200
            for _ in range(2):
                other = await client.get("/metrics")
                assert other.status_code == 200 and "mae_gpu" not in other.text and "mae_ready" in other.text
            assert not hanging.done()
            driver.hang.set()
            assert "mae_gpu_power_watts" in (await hanging).text

    asyncio.run(scrape())
    assert len([record for record in caplog.records if "has not answered" in record.getMessage()]) == 1


def test_the_service_shuts_the_driver_down(driver: Driver) -> None:
    app = create_app(Settings(), lambda settings, progress: ServedModel(FakeEngine()))

    async def live() -> None:
        async with app.router.lifespan_context(app):
            app.state.service.metrics.render()

    asyncio.run(live())
    assert driver.calls.count("nvmlShutdown") == 1
