"""Lanes in virtual time, and results that are counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

from model.engines.base import FatalEngineError
from service.errors import ServiceError
from service.inference.batch_scheduler import BatchScheduler
from service.inference.executor import BatchExecutor
from service.inference.pending_results import PendingResults
from service.inference.queue import Result

LONGEST_BATCH_S = 0.05


class CountingResults(PendingResults):
    """Fails if a result comes twice, or after the request has ended."""

    def __init__(self, count: int, errors: list[Any]) -> None:
        super().__init__(count)
        self.seen: Counter[int] = Counter()
        self.is_over = False
        self._errors = errors

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        self.seen[index] += 1
        if self.seen[index] > 1 or self.is_over:
            self._errors.append(f"result {index} came {self.seen[index]} times, over: {self.is_over}")
        super().on_result(index, result, queue_s, infer_s)


class VirtualScheduler(BatchScheduler):
    """Has tasks in the place of the lanes' threads."""

    random: Random

    def start(self) -> None:
        self._results.open()
        self._stopping = True  # so a lane never waits in `_next_work`
        self._arrived = asyncio.Event()
        self.lanes = [asyncio.create_task(self._serve(lane)) for lane in range(self.engine.info.lanes)]

    def put(self, *arguments: Any) -> None:
        super().put(*arguments)
        self._arrived.set()

    async def _serve(self, lane: int) -> None:
        executor = BatchExecutor(self.engine, lane, self._metrics)
        while not self.lost:
            work: Any = self._next_work(lane)
            if work is None:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            await asyncio.sleep(self.random.uniform(0, LONGEST_BATCH_S))
            batch = work.entries
            try:
                results, seconds = executor.run(batch[0].request.operation, batch)
            except FatalEngineError as error:
                self.lose(str(error))
                return
            finally:
                self._end_batch(work, None)
            self._results.deliver(batch, results, seconds)
