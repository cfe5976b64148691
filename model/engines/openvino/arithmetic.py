"""The precision that OpenVINO really computes in: a hint is a request, and the CPU decides how it is met.

On a CPU with instructions for bf16, the hint `bf16` is followed. On one with AVX-512 but without them, OpenVINO
emulates bf16, by kernels that give an image other bits alone than in a batch. On one with AVX2 alone, it drops the hint
and computes in float32. The hint `f16` becomes float16, bf16, emulated bf16 or float32 in the same way.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from model.engines.base import ComputedPrecision, Precision
from model.engines.openvino.runtime import PRECISION_HINTS, import_openvino

PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
"""Layers that multiply matrices, as OpenVINO's runtime models name them."""
X86 = ("x86_64", "AMD64")
SIDE = 64
"""Side of the sample product's matrices, large enough for the kernels that real layers get."""


def computed_precision(graphs: Iterable[Any]) -> ComputedPrecision:
    """The precision of the matrix products of compiled models, read from their layers, not from their options.

    A compiled model of dynamic shapes does not tell bf16 from emulated bf16 before its first batch. The sample product
    of `sample_precision`, whose shape is fixed, does.
    """
    types = {_runtime_info(layer, "runtimePrecision") for graph in graphs for layer in _products(graph)}
    if "f16" in types:
        return "fp16"
    if "bf16" in types:
        return "emulated bf16" if sample_precision("bf16") == "emulated bf16" else "bf16"
    return "fp32"


@cache
def sample_precision(precision: Precision) -> ComputedPrecision | None:
    """The precision that a product of two small matrices is computed in on this CPU under the hint for `precision`.

    It is None where OpenVINO takes the hint and then has no kernel for it.
    """
    openvino = import_openvino()
    from openvino import opset13 as operations

    rows = operations.parameter([SIDE, SIDE], openvino.Type.f32)
    weights = operations.constant(np.ones((SIDE, SIDE), dtype=np.float32))
    product = openvino.Model([operations.matmul(rows, weights, False, True)], [rows])
    options = {"INFERENCE_PRECISION_HINT": PRECISION_HINTS[precision], "INFERENCE_NUM_THREADS": 1}
    try:
        (layer,) = _products(openvino.Core().compile_model(product, "CPU", options))
    except RuntimeError:
        return None
    computed = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}[_runtime_info(layer, "runtimePrecision")]
    # oneDNN's kernels named brgemm multiply bf16 by the CPU's own instructions; on x86 all its others emulate them.
    if computed == "bf16" and platform.machine() in X86 and "brgemm" not in _runtime_info(layer, "primitiveType"):
        return "emulated bf16"
    return computed  # type: ignore[return-value]


def _products(graph: Any) -> list[Any]:
    return [layer for layer in graph.get_runtime_model().get_ops() if _runtime_info(layer, "layerType") in PRODUCTS]


def _runtime_info(layer: Any, name: str) -> str:
    """A field of a layer's runtime info: `layerType`, `runtimePrecision` or `primitiveType`."""
    text: str = layer.get_rt_info()[name].astype(str)
    return text
