"""The joined lane of an engine: whether there is to be one, and whether it computes what the other lanes compute.

It runs one batch on the threads of all lanes, so that a lone image takes less time. OpenVINO keeps a second copy of the
weights for it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.config import MAEConfig
from model.engines.base import ComputedPrecision
from model.engines.outputs import EngineOutputs
from model.engines.parity import ParityError, Tolerance, measure_parity, require_tolerance

SAME_BITS: tuple[ComputedPrecision, ...] = ("fp32", "bf16", "int8")
"""Computed precisions in which an image has the same bits on each lane and in any batch."""
MEMORY_SHARE = 1 / 20
"""The share of the memory that auto spends on a joined lane."""
CGROUP_LIMITS = tuple(Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes"))
"""Files with the memory limit of a container, by cgroups of version 2 and of version 1."""
Outputs = dict[str, NDArray[Any]]
"""Outputs of a batch under the names of `EngineOutputs`."""


def wants_joined_lane(setting: Literal["auto", "on", "off"], lanes: int, graphs: Path) -> bool:
    """Whether an engine is to have a joined lane: with one lane there is nothing to join.

    Under auto it is made where the constants of its graphs, which it keeps a second time, take at most a twentieth of
    the memory that this process may use.

    Args:
        setting: JOINED_LANE.
        lanes: number of the engine's lanes.
        graphs: the folder with its graphs.
    """
    if setting != "auto" or lanes == 1:
        return setting != "off" and lanes > 1
    constants = sum(path.stat().st_size for path in graphs.glob("*.bin"))
    return constants <= MEMORY_SHARE * usable_memory()


def usable_memory(limits: tuple[Path, ...] = CGROUP_LIMITS) -> float:
    """Bytes of memory that this process may use: the machine's, or fewer if its container has a limit."""
    texts = (path.read_text().strip() for path in limits if path.is_file())
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(float(text) for text in texts if text != "max")])


@dataclass
class JoinedLaneCheck:
    """Compares the joined lane's outputs for the fixed images with those of the other lanes, and with eager float32."""

    config: MAEConfig
    computes: ComputedPrecision
    """The precision that the engine computes in."""
    lanes: EngineOutputs
    """The outputs of the other lanes."""
    reference: EngineOutputs
    """The outputs of eager float32."""
    tolerance: Tolerance
    """How far they may lie from eager float32."""
    refusal: str | None = None
    """Why the joined lane must not serve; None as long as nothing is found."""
    _images: dict[str, dict[int, NDArray[Any]]] = field(default_factory=lambda: defaultdict(dict))

    def compare(self, images: NDArray[np.int64], outputs: Outputs) -> None:
        """Compares a batch of fixed images with the other lanes, bit by bit where the precision promises that."""
        if self.computes in SAME_BITS:
            expected = self.lanes.arrays()
            if not all(np.array_equal(output, expected[name][images]) for name, output in outputs.items()):
                self.refusal = f"it gives images other bits than the other lanes ({len(images)} images in a batch)"

    def add(self, image: int, outputs: Outputs) -> None:
        """Takes the outputs for one fixed image, for `finish`."""
        self.compare(np.array([image]), outputs)
        for name, output in outputs.items():
            self._images[name][image] = output[0]

    def finish(self) -> None:
        """Compares all fixed images with eager float32, as every engine is compared."""
        arrays = {name: np.stack([rows[image] for image in sorted(rows)]) for name, rows in self._images.items()}
        outputs = EngineOutputs(arrays["whole"], arrays["masked"], arrays.get("pixels"), arrays.get("error"))
        try:
            require_tolerance(measure_parity(outputs, self.reference, self.config), self.tolerance)
        except ParityError as error:
            self.refusal = str(error)
