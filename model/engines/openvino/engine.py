"""OpenVINO on the CPU: two compiled graphs, encoder and decoder, and one pair of infer requests per lane.

Under load, lanes of one thread each beat one lane of all threads: no thread waits for another inside a layer. A lone
image is faster on all threads, so the graphs may be compiled a second time for a joined lane. Latents go from the
encoder's output tensor to the decoder's input without a copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.engines.base import EngineBuildError, EngineError, EngineInfo, gather_visible
from model.engines.openvino.arithmetic import computed_precision
from model.engines.openvino.graphs import DECODER_FILE, ENCODER_FILE
from model.engines.openvino.runtime import PRECISION_HINTS, import_openvino
from model.masking import restore_indices_for

DEFAULT_BATCH = 4
VIT_FP32_KERNELS, KERNELS = 50, 250
"""Number of kernels of a kind that are kept per lane and graph: those of more than eight shapes (1 to 4 images, all
patches or a quarter) of a ViT in float32, and of ten in int8.

Clients choose K, and with OpenVINO's default of 5000 kernels they would take gigabytes. Kernels that are kept among
much that is freed also fragment the memory, so fewer of them let a process grow less."""


class OpenVINOEngine:
    """An `Engine` that runs the graphs in a folder; it imports no torch."""

    def __init__(self, folder: Path, info: EngineInfo) -> None:
        """Compiles the graphs in `folder` for this CPU, with `info.lanes` lanes.

        `self.info.computes` is the precision that OpenVINO then computes in.

        Raises:
            EngineBuildError: OpenVINO cannot compile them in `info.precision`.
        """
        self._folder = folder
        self.info = info
        graphs = self._compile(info.lanes)
        # In int8 the graphs themselves round to eight bits, whatever instructions multiply the results.
        computes = "int8" if info.precision == "int8" else computed_precision(graphs)
        self.info = info.model_copy(update={"computes": computes})
        requests = [[graph.create_infer_request() for _ in range(info.lanes)] for graph in graphs]
        self._encoders: list[Any] = requests[0]
        self._decoders: list[Any] = requests[1] if info.config.has_decoder else []

    def join_lanes(self) -> None:
        """Compiles the graphs again for a lane with the threads of all lanes, which gets the number `info.lanes`.

        OpenVINO keeps the weights of this lane beside those of the others. Other lanes may run meanwhile. Their threads
        and those of the joined lane compete for the same CPUs, so use them in turns.

        Raises:
            EngineBuildError: OpenVINO cannot compile the graphs.
        """
        requests = [graph.create_infer_request() for graph in self._compile(1)]
        self._encoders.append(requests[0])
        self._decoders += requests[1:]

    def drop_joined_lane(self) -> None:
        """Frees the memory of the joined lane, if there is one. It must not be in use."""
        del self._encoders[self.info.lanes :], self._decoders[self.info.lanes :]

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        return _copy(self._encode(lane, patches, visible_indices).get_output_tensor(0))

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        return _copy(self._encode(lane, patches, visible_indices).get_output_tensor(1))[:, 1:]

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if not self._decoders:
            raise EngineError("the model has no decoder")
        latent = self._encode(lane, gather_visible(patches, visible_indices), visible_indices).get_output_tensor(1)
        restore_indices = restore_indices_for(visible_indices, self.info.config.num_patches)
        request = self._decoders[lane]
        _infer(request, [latent, restore_indices, patches])
        return np.array(request.get_output_tensor(0).data, dtype=np.uint8), _copy(request.get_output_tensor(1))

    def _compile(self, streams: int) -> list[Any]:
        """The compiled graphs, encoder first, with the threads of all lanes in a number of streams."""
        info = self.info
        core = import_openvino().Core()
        kernels = VIT_FP32_KERNELS if (info.config.family, info.precision) == ("vit", "fp32") else KERNELS
        options = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": info.lanes * info.threads_per_lane,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[info.precision],
            "CPU_RUNTIME_CACHE_CAPACITY": kernels,
        }
        files = (ENCODER_FILE, DECODER_FILE) if info.config.has_decoder else (ENCODER_FILE,)
        try:
            return [core.compile_model(str(self._folder / file), "CPU", options) for file in files]
        except RuntimeError as error:
            raise EngineBuildError(f"OpenVINO cannot compile the model in {info.precision} on this CPU") from error

    def _encode(self, lane: int, patches: Bytes, visible_indices: Indices) -> Any:
        request = self._encoders[lane]
        _infer(request, [np.ascontiguousarray(patches), np.ascontiguousarray(visible_indices)])
        return request


def _infer(request: Any, inputs: list[Any]) -> None:
    try:
        request.infer(inputs, share_inputs=True)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO could not run a batch: {error}") from error


def _copy(tensor: Any) -> Floats:
    """Copies a tensor out of the request's memory, which the next batch overwrites."""
    return np.array(tensor.data, dtype=np.float32)
