"""Prometheus metrics of the GPUs that this process may use, read from NVML at every scrape.

NVML lists every GPU of the machine; CUDA_VISIBLE_DEVICES says which of them this process may use. Its indexes are taken
in the order of the PCI bus, as NVML and nvidia-smi number them (and CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID). CUDA may
number the GPUs of a machine with different models otherwise: name them by UUID there.
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
# A driver that has lost a GPU can block a call for minutes. One scrape waits for it; the others give up.
LOCK_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Reading:
    """One metric: its name, its help text, and the function of (pynvml, GPU handle) that reads it."""

    name: str
    help: str
    read: Callable[[Any, Any], float]


READINGS = (
    Reading(
        "mae_gpu_memory_used_bytes",
        "Memory of the GPU that is in use, by all processes and the driver, in bytes.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    Reading(
        "mae_gpu_memory_total_bytes",
        "Memory of the GPU, in bytes.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    Reading(
        "mae_gpu_utilization_ratio",
        "Share of the last sampling period (up to a second) in which a kernel ran, 0 to 1.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    Reading(
        "mae_gpu_power_watts",
        "Power that the board draws, in watts.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    Reading(
        "mae_gpu_temperature_celsius",
        "Temperature of the GPU, in degrees Celsius.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
)


class GPUCollector(Collector):
    """Reads the GPUs at every scrape; exports nothing on a machine without one.

    The first scrape opens NVML, which then stays open. A reading takes microseconds to a few milliseconds, and a faulty
    driver may take far longer, so call `collect` in a thread and not on the event loop.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Reads CUDA_VISIBLE_DEVICES from `environment`; NVML is not opened yet."""
        self._visible = environment.get("CUDA_VISIBLE_DEVICES")
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._gpus: dict[str, Any] | None = None
        """Handles by index; None before the first scrape, empty without a GPU."""
        self._warned: set[tuple[str, str]] = set()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One family per metric, with one sample per GPU that has it."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            self._warn_once("all", f"NVML has not answered for {LOCK_TIMEOUT_S:g} s: this scrape has no GPU metrics")
            return []
        try:
            if self._gpus is None:
                self._gpus = self._open()
            return list(self._families(self._gpus))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Shuts NVML down; later scrapes export nothing."""
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            return  # a call hangs in the driver; the process ends anyway
        try:
            nvml, self._nvml, self._gpus = self._nvml, None, {}
            if nvml is not None:
                try:
                    nvml.nvmlShutdown()
                except nvml.NVMLError as error:
                    log.debug("NVML cannot be shut down: %s", error)
        finally:
            self._lock.release()

    def _open(self) -> dict[str, Any]:
        import pynvml  # imported lazily: a machine without a GPU does not need it before the first scrape

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.debug("no GPU metrics: %s", error)
            return {}
        self._nvml = pynvml
        try:
            gpus = _visible_gpus(pynvml, self._visible)
        except pynvml.NVMLError as error:
            self._warn_once("all", f"no GPU metrics: {error}")
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
                    continue  # a GPU without this sensor, or a virtual GPU
                except self._nvml.NVMLError as error:
                    self._warn_once(index, f"GPU {index} cannot be read: {error}")
            if family.samples:
                yield family

    def _warn_once(self, gpu: str, message: str) -> None:
        """Logs each warning about each GPU once, not at every scrape."""
        if (gpu, message) not in self._warned:
            self._warned.add((gpu, message))
            log.warning(message)


def _visible_gpus(nvml: Any, visible: str | None) -> dict[str, Any]:
    """Handles by index of the GPUs that CUDA would list: all, or those in `visible` up to the first that is unknown."""
    all_gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return {str(index): gpu for index, gpu in enumerate(all_gpus)}
    handles: dict[str, Any] = {}
    for name in (part.strip() for part in visible.split(",")):
        if name.startswith("MIG-"):
            try:
                instance = nvml.nvmlDeviceGetHandleByUUID(name)
                parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
            except nvml.NVMLError:
                break
            handles[str(nvml.nvmlDeviceGetIndex(parent))] = instance
            continue
        index = _index_of(nvml, all_gpus, name)
        if index is None:
            break
        handles[str(index)] = all_gpus[index]
    return handles


def _index_of(nvml: Any, all_gpus: list[Any], name: str) -> int | None:
    """The index of the GPU that `name` names by its index, or by its UUID or the beginning of it."""
    if name.isdecimal():
        return int(name) if int(name) < len(all_gpus) else None
    if not name.startswith("GPU-"):
        return None
    matching = [index for index, gpu in enumerate(all_gpus) if nvml.nvmlDeviceGetUUID(gpu).startswith(name)]
    return matching[0] if len(matching) == 1 else None
