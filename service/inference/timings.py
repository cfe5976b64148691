"""The seconds of a request by stage, and the spans of its trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.tracing.spans import RequestTrace

STAGES = ("decode", "queue", "infer", "search", "render")
_NO_SPAN = nullcontext()


@dataclass
class Timings:
    """Seconds of one request by stage; of several images, the seconds of the slowest."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    render: float = 0.0
    search: float = 0.0
    trace: RequestTrace | None = None
    """Records the stages as spans; None where requests are not traced."""

    def seconds(self) -> dict[str, float]:
        """The seconds of each stage, by its name."""
        return {name: getattr(self, name) for name in STAGES}

    def record_span(self, stage: str, **attributes: int) -> AbstractContextManager[None]:
        """A context whose time is recorded as a span, where requests are traced."""
        return _NO_SPAN if self.trace is None else self.trace.stage(stage, **attributes)

    @property
    def traceparent(self) -> str:
        """Names the request's span for spans of its batches; empty if the request is not sampled."""
        return "" if self.trace is None else self.trace.sampled_traceparent
