"""The roofline: the least time that a device needs, which is the work of the graphs over the device's peak.

The peak is measured, not taken from a data sheet: the peak of arithmetic is that of one large matrix product, the peak
of memory that of one large copy, both by torch. The work is counted in the very graphs that are served, by torch's own
counter: matrix products and convolutions (a multiply-add is two operations), and the bytes that must cross the memory.
These are the weights once per batch, inputs, outputs, and the activations that pass from block to block, as if each
block were one kernel. So the time is a lower bound. It includes no transfer between host and device.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.config import MAEConfig, Preprocessing
from model.engines.base import Precision
from model.engines.cpu import available_cpus
from model.nn import build_model
from model.nn.base import DECODER_PREFIXES, Autoencoder
from model.nn.serving import DecoderGraph, EncoderGraph

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
"""Type of the matrix products; for int8 the bound is lower still, since OpenVINO leaves some of them in float32."""
PEAK_SECONDS = 1.0
MATRIX = {"cuda": 8192, "cpu": 2048}
COPIED_BYTES = {"cuda": 512 << 20, "cpu": 256 << 20}  # far more than any cache holds


class Peak(BaseModel):
    """The measured peak of a device."""

    model_config = ConfigDict(frozen=True)

    device: str
    precision: Precision
    flops_per_s: float
    bytes_per_s: float
    """Bytes read and bytes written together."""

    def better(self, other: Peak) -> Peak:
        """The higher of both measurements, for arithmetic and for memory."""
        flops, moved = (max(pair) for pair in zip(self._rates(), other._rates(), strict=True))
        return self.model_copy(update={"flops_per_s": flops, "bytes_per_s": moved})

    def _rates(self) -> tuple[float, float]:
        return self.flops_per_s, self.bytes_per_s


class Work(BaseModel):
    """The work of one graph."""

    model_config = ConfigDict(frozen=True)

    flops: int
    """Operations per image."""
    weight_bytes: int
    """Bytes of weights per batch."""
    input_output_bytes: int
    """Bytes of inputs and outputs per image."""
    activation_bytes: int
    """Bytes of activations per image; a lower bound."""

    def seconds(self, batch: int, peak: Peak) -> float:
        """Seconds for a batch, if arithmetic and memory are both at their peak and neither waits for the other."""
        moved = self.weight_bytes + batch * (self.input_output_bytes + self.activation_bytes)
        return max(batch * self.flops / peak.flops_per_s, moved / peak.bytes_per_s)


def roofline_seconds(works: list[Work], batch: int, peak: Peak) -> float:
    """The least time for a batch that goes through the graphs one after the other."""
    return sum(work.seconds(batch, peak) for work in works)


def works_of(config: MAEConfig, visible: int, precision: Precision, decodes: bool) -> list[Work]:
    """The work of the encoder graph for `visible` patches and, if it `decodes`, of the decoder graph after it."""
    n, p = config.num_patches, config.patch_dim
    with torch.device("meta"):  # shapes alone: nothing is computed
        model = build_model(config).eval()
        indices = torch.empty(1, n, dtype=torch.int32)
        patches = torch.empty(1, n, p, dtype=torch.uint8)
        latent = torch.empty(1, 1 + visible, config.embed_dim)
        encoder_size, decoder_size = _count_parameters(model)
        works = [
            _count_work(
                EncoderGraph(model, Preprocessing()),
                (patches[:, :visible], indices[:, :visible]),
                encoder_size,
                "blocks",
                precision,
            )
        ]
        if decodes:
            graph = DecoderGraph(model, Preprocessing())
            works.append(_count_work(graph, (latent, indices, patches), decoder_size, "decoder_blocks", precision))
    return works


def measure_peak(device: str, precision: Precision) -> Peak:
    """Measures `device` in a large matrix product in `precision` and in a large copy: the best of many runs.

    Float32 is IEEE's, not TF32, as in the engines. No precision counts as slower than float32, to which hardware falls
    back where it lacks a precision.
    """
    kind, threads = torch.device(device).type, torch.get_num_threads()
    if kind == "cpu":
        torch.set_num_threads(available_cpus())
    try:
        with torch.inference_mode():
            flops = max(_measure_products(device, MATRIX[kind], DTYPES[name]) for name in {precision, "fp32"})
            source = torch.zeros(COPIED_BYTES[kind], dtype=torch.uint8, device=device)
            target = torch.ones_like(source)  # written once, so that its pages exist
            moved = 2 * source.nbytes / _best(lambda: target.copy_(source), kind)
    finally:
        torch.set_num_threads(threads)
    return Peak(device=device, precision=precision, flops_per_s=flops, bytes_per_s=moved)


def _measure_products(device: str, side: int, dtype: torch.dtype) -> float:
    """Operations per second; products of eight bits are summed in 32, as in the engines."""
    a, b = ((100 * torch.rand(side, side, device=device)).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=torch.int32 if dtype is torch.int8 else dtype, device=device)
    multiply = torch._int_mm if dtype is torch.int8 else torch.mm
    return 2 * side**3 / _best(lambda: multiply(a, b, out=out), torch.device(device).type)


def _best(work: Callable[[], object], kind: str) -> float:
    """Seconds of the fastest of many runs of `work`."""
    best, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    work()
    if kind == "cuda":
        torch.cuda.synchronize()
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _count_parameters(model: Autoencoder) -> tuple[int, int]:
    """Numbers of parameters of the encoder and of the decoder."""
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        counts[name.startswith(DECODER_PREFIXES)] += parameter.numel()
    return counts[0], counts[1]


def _count_work(
    graph: nn.Module, arguments: tuple[Tensor, ...], parameters: int, blocks: str, precision: Precision
) -> Work:
    """Counts the work of a graph with `parameters` numbers of weights, whose blocks have the name `blocks`."""
    activations = [0]

    def count(block: nn.Module, inputs: object, output: Tensor) -> None:
        activations[0] += output.numel()

    model = graph.get_submodule("model")
    hooks = [block.register_forward_hook(count) for block in model.get_submodule(blocks).children()]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = graph(*arguments)
    for hook in hooks:
        hook.remove()
    each = DTYPES[precision].itemsize
    return Work(
        flops=counter.get_total_flops(),
        weight_bytes=parameters * each,
        input_output_bytes=sum(tensor.nbytes for tensor in (*arguments, *outputs)),
        activation_bytes=2 * activations[0] * each,  # written, and read by the next block
    )
