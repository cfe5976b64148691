"""A CPU that stands in for a GPU in tests: its streams run each operation at once, and its graphs can be replayed.

A recording behaves as a CUDA graph does: it holds the operations of the time of recording and the memory that they
read and wrote, and a replay runs these operations alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    made = 0

    def __init__(self, device: object = None) -> None:
        Stream.made += 1
        self.cuda_stream = Stream.made

    def synchronize(self) -> None:
        pass


class Graph:
    """A recording: its operations as functions to call again."""

    recording: "Graph | None" = None

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for step in self.steps:
            step()

    def pool(self) -> int:
        return 1


class Recorder(TorchDispatchMode):
    """Runs torch's operations, and adds each to a recording."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))

        def repeat() -> None:
            fresh = func(*args, **(kwargs or {}))
            for old, new in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.graph.steps.append(repeat)
        return result


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces torch.cuda, as far as a `DeviceEngine` uses it, by stand-ins on the CPU."""
    streams = [Stream()]

    @contextmanager
    def stream(of: Stream) -> Iterator[None]:
        streams.append(of)
        try:
            yield
        finally:
            streams.pop()

    @contextmanager
    def graph(of: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert stream is streams[-1] and capture_error_mode == "thread_local"
        Graph.recording = of
        try:
            with Recorder(of):
                yield
        finally:
            Graph.recording = None

    for name, stand_in in {
        "Stream": Stream,
        "stream": stream,
        "current_stream": lambda: streams[-1],
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
