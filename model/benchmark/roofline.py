"""The least time that a device needs: work counted in the graphs, over what the device is seen to do here and now.

No data sheet is asked: the peak of arithmetic is that of one large product of matrices, the peak of memory that of one
large copy, both measured by torch. Counted are products and convolutions (two operations a multiply-add, by torch's
own counter, over the very graphs that are served), and what must cross the memory: weights once a batch, inputs,
outputs, and of the activations only what passes from block to block, as if each block were one kernel. So it is a
bound from below, and nothing between the host and the device is in it.
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
from model.nn.base import Autoencoder
from model.nn.serving import DecoderGraph, EncoderGraph

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
"""What products are computed in; in int8 it is a bound from below too, for OpenVINO leaves some of them in float32."""
PEAK_SECONDS = 1.0
MATRIX = {"cuda": 8192, "cpu": 2048}
COPIED_BYTES = {"cuda": 512 << 20, "cpu": 256 << 20}  # far more than any cache holds


class Frozen(BaseModel):
    """Facts."""

    model_config = ConfigDict(frozen=True)


class Peak(Frozen):
    """What a device was seen to do."""

    device: str
    precision: Precision
    flops_per_s: float
    bytes_per_s: float
    """Read and written together."""

    def better(self, other: Peak) -> Peak:
        """The higher figure of each."""
        flops, moved = (max(pair) for pair in zip(self._rates(), other._rates(), strict=True))
        return self.model_copy(update={"flops_per_s": flops, "bytes_per_s": moved})

    def _rates(self) -> tuple[float, float]:
        return self.flops_per_s, self.bytes_per_s


class Work(Frozen):
    """What one graph has to do."""

    flops: int
    """An image."""
    weight_bytes: int
    """A batch."""
    input_output_bytes: int
    """An image."""
    activation_bytes: int
    """An image; a bound from below."""

    def seconds(self, batch: int, peak: Peak) -> float:
        """For a batch, if arithmetic and memory are as busy as they can be and neither waits for the other."""
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
        rows = torch.empty(1, n, dtype=torch.int32)
        patches = torch.empty(1, n, p, dtype=torch.uint8)
        latent = torch.empty(1, 1 + visible, config.embed_dim)
        of_encoder, of_decoder = _split(model)
        works = [
            _work(
                EncoderGraph(model, Preprocessing()),
                (patches[:, :visible], rows[:, :visible]),
                (of_encoder, "blocks", precision),
            )
        ]
        if decodes:
            graph = DecoderGraph(model, Preprocessing())
            works.append(_work(graph, (latent, rows, patches), (of_decoder, "decoder_blocks", precision)))
    return works


def measure_peak(device: str, precision: Precision) -> Peak:
    """What `device` does in a large product of matrices in `precision` and in a large copy: the best of many.

    Float32 is IEEE's, not TF32, as in the engines. No precision counts as slower than float32, which hardware without
    it falls back to.
    """
    kind, threads = torch.device(device).type, torch.get_num_threads()
    if kind == "cpu":
        torch.set_num_threads(available_cpus())
    try:
        with torch.inference_mode():
            flops = max(_products(device, MATRIX[kind], DTYPES[name]) for name in {precision, "fp32"})
            source = torch.zeros(COPIED_BYTES[kind], dtype=torch.uint8, device=device)
            target = torch.ones_like(source)  # written once, so that its pages exist
            moved = 2 * source.nbytes / _best(lambda: target.copy_(source), kind)
    finally:
        torch.set_num_threads(threads)
    return Peak(device=device, precision=precision, flops_per_s=flops, bytes_per_s=moved)


def _products(device: str, side: int, dtype: torch.dtype) -> float:
    """Operations a second; eight bits are summed up in 32, as the engines do."""
    a, b = ((100 * torch.rand(side, side, device=device)).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=torch.int32 if dtype is torch.int8 else dtype, device=device)
    multiply = torch._int_mm if dtype is torch.int8 else torch.mm
    return 2 * side**3 / _best(lambda: multiply(a, b, out=out), torch.device(device).type)


def _best(work: Callable[[], object], kind: str) -> float:
    """Seconds that `work` takes when nothing disturbs it."""
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


def _split(model: Autoencoder) -> tuple[int, int]:
    """How many numbers the encoder and the decoder are made of."""
    sizes = [0, 0]
    for name, parameter in model.named_parameters():
        sizes[name.startswith(("decoder", "mask_token"))] += parameter.numel()
    return sizes[0], sizes[1]


def _work(graph: nn.Module, arguments: tuple[Tensor, ...], of: tuple[int, str, Precision]) -> Work:
    numbers, blocks, precision = of
    passed = [0]

    def count(block: nn.Module, given: object, output: Tensor) -> None:
        passed[0] += output.numel()

    model = graph.get_submodule("model")
    hooks = [block.register_forward_hook(count) for block in model.get_submodule(blocks).children()]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        outputs = graph(*arguments)
    for hook in hooks:
        hook.remove()
    each = DTYPES[precision].itemsize
    return Work(
        flops=counter.get_total_flops(),
        weight_bytes=numbers * each,
        input_output_bytes=sum(tensor.nbytes for tensor in (*arguments, *outputs)),
        activation_bytes=2 * passed[0] * each,  # written, and read by the next
    )
