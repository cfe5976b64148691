"""The openvino package, and the options that every engine compiles with."""

from __future__ import annotations

import sys
from typing import Any

from model.engines.base import Precision

PRECISION_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""OpenVINO's hints. In int8 the graphs themselves say which layers have eight bits; the rest is float32."""


def import_openvino() -> Any:
    """The openvino package, without its telemetry, which otherwise reports every import to its maker."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes the import fail: a stub is used
    import openvino

    return openvino
