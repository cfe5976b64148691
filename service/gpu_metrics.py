"""The GPUs that this process may use, as NVML sees them whenever Prometheus asks.

CUDA_VISIBLE_DEVICES narrows what NVML lists. Its indexes are taken in the order of the bus, which is NVML's and
nvidia-smi's (and CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID): where cards of several kinds sit in one machine, name them
by UUID.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)
# A driver that has lost a card can keep a call for minutes. One scrape waits for it; the others give up after this.
PATIENCE_S = 1.0


@dataclass(frozen=True)
class Reading:
    """One metric: its name, what it says, and how it is read by (pynvml, handle)."""

    name: str
    help: str
    read: Callable[[Any, Any], float]


READINGS = (
    Reading(
        "mae_gpu_memory_used_bytes",
        "Memory of the GPU in use, by all processes and the driver.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    Reading(
        "mae_gpu_memory_total_bytes",
        "Memory of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    Reading(
        "mae_gpu_utilization_ratio",
        "Share of the last moment (up to a second) in which a kernel was running, 0 to 1.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    Reading(
        "mae_gpu_power_watts",
        "Power that the board draws.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    Reading(
        "mae_gpu_temperature_celsius",
        "Temperature of the chip.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
)


class GPUCollector(Collector):
    """Reads the GPUs at each scrape; exports nothing where there are none.

    NVML is opened by the first scrape and stays open. A reading takes microseconds to a few milliseconds and a sick
    driver may take far longer, so `collect` belongs into a thread, not on the event loop.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Nothing is opened yet; `environment` is where CUDA_VISIBLE_DEVICES is looked up."""
        self._visible = environment.get("CUDA_VISIBLE_DEVICES")
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._gpus: dict[str, Any] | None = None
        """Handles by index; None before the first scrape, empty where there is nothing to read."""
        self._told: set[tuple[str, str]] = set()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One family a reading, one sample a GPU that gives it."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            self._tell("all", f"NVML has not answered for {PATIENCE_S:g} s: a scrape goes without the GPUs")
            return []
        try:
            if self._gpus is None:
                self._gpus = self._open()
            return list(self._families(self._gpus))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Shuts NVML down; later scrapes export nothing."""
        if not self._lock.acquire(timeout=PATIENCE_S):
            return  # a call that hangs in the driver: the process is ending anyway
        try:
            nvml, self._nvml, self._gpus = self._nvml, None, {}
            if nvml is not None:
                try:
                    nvml.nvmlShutdown()
                except nvml.NVMLError as error:
                    log.debug("NVML does not shut down: %s", error)
        finally:
            self._lock.release()

    def _open(self) -> dict[str, Any]:
        import pynvml  # here, because a machine without a GPU should not pay for it before it is asked

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.debug("no GPU metrics: %s", error)
            return {}
        self._nvml = pynvml
        try:
            gpus = _visible_gpus(pynvml, self._visible)
        except pynvml.NVMLError as error:
            self._tell("all", f"no GPU metrics: {error}")
            return {}
        if not gpus:
            log.debug("no GPU metrics: no GPU is visible (CUDA_VISIBLE_DEVICES=%s)", self._visible)
        return gpus

    def _families(self, gpus: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
        for reading in READINGS if gpus else ():
            family = GaugeMetricFamily(reading.name, reading.help, labels=["gpu"])
            for index, gpu in gpus.items():
                try:
                    family.add_metric([index], reading.read(self._nvml, gpu))
                except self._nvml.NVMLError_NotSupported:
                    continue  # a card without this sensor, or a virtual one
                except self._nvml.NVMLError as error:
                    self._tell(index, f"GPU {index} cannot be read: {error}")
            if family.samples:
                yield family

    def _tell(self, gpu: str, sentence: str) -> None:
        """Warns once of each trouble of each GPU, not at every scrape."""
        if (gpu, sentence) not in self._told:
            self._told.add((gpu, sentence))
            log.warning(sentence)


def _visible_gpus(nvml: Any, visible: str | None) -> dict[str, Any]:
    """Handles by index of what CUDA would show: all, or those named, up to the first that does not exist."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return {str(index): gpu for index, gpu in enumerate(every)}
    found: dict[str, Any] = {}
    for name in (part.strip() for part in visible.split(",")):
        if name.startswith("MIG-"):
            try:
                slice_ = nvml.nvmlDeviceGetHandleByUUID(name)
                parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_)
            except nvml.NVMLError:
                break
            found[str(nvml.nvmlDeviceGetIndex(parent))] = slice_
            continue
        index = _index_of(nvml, every, name)
        if index is None:
            break
        found[str(index)] = every[index]
    return found


def _index_of(nvml: Any, every: list[Any], name: str) -> int | None:
    """The place of a GPU that is named by its index or by (the beginning of) its UUID."""
    if name.isdecimal():
        return int(name) if int(name) < len(every) else None
    if not name.startswith("GPU-"):
        return None
    matching = [index for index, gpu in enumerate(every) if nvml.nvmlDeviceGetUUID(gpu).startswith(name)]
    return matching[0] if len(matching) == 1 else None
