"""Embeds a collection in whole batches: groups of images are read, decoded and embedded, and returned in their order.

A service forms batches of what its clients happen to send. Here all images are known to come, so there is no queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from model.arrays import Bytes, Floats
from model.checkpoints.heads import POOL_INDEX
from model.engines.base import FatalEngineError, ServedModel
from service.cli.errors import CommandError, describe_file_error
from service.cli.image_decoding import (
    DecodedFile,
    DecoderSettings,
    UnreadImage,
    decode_in_process,
    open_decoders,
    unpack,
)
from service.cli.image_sources.entry import ImageEntry, ImageUnreadable
from service.cli.vector_files.space import VectorRecord
from service.errors import EngineLost, ServiceError
from service.inference.embedding import EmbeddingPlan
from service.inference.executor import BatchExecutor
from service.inference.queue import DecoderOutput, QueuedRequest, QueueEntry, Result
from service.inference.watchdog import Heartbeat, Watchdog, WatchedEngine
from service.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")
REMOTE_READS = 32
"""Images that are fetched at the same time."""
MIN_IMAGES = 256
"""Images that are on their way at once, at least: those of some seconds, which hide the time of an fsync."""


class PendingImage:
    """An image that is going to be embedded."""

    def __init__(self, entry: ImageEntry) -> None:
        """Reads it at once if it must be read in its turn."""
        self.entry = entry
        self.read: Callable[[], bytes] = entry.read
        if entry.in_sequence:
            self.fetch()

    def fetch(self) -> None:
        """Reads its bytes and keeps them until they are decoded."""
        try:
            self.read = _Fetched(self.entry.read())
        except OSError as error:
            self.read = _Fetched(problem=error.strerror or str(error))


class BatchEmbedder:
    """Embeds groups of images; use it as a context manager."""

    def __init__(self, served: ServedModel, settings: Settings, plan: EmbeddingPlan, processes: int) -> None:
        """For one engine and plan.

        Args:
            served: the engine and its model.
            settings: bounds of decoding, and the number of threads that decode.
            plan: what is computed of each image.
            processes: number of processes that decode instead of threads; 0 for none.
        """
        info = served.info
        self.plan = plan
        self.batch = info.preferred_batch
        """Images in a group."""
        least = 2 * info.lanes + (processes or settings.decode_threads)
        self.max_groups = max(least, MIN_IMAGES // self.batch)
        """Groups on their way at once: each lane has its next one ready, and each decoder one at work, even while a
        disk lets all wait."""
        self._config = info.config
        self._decoders, self._decode = open_decoders(
            DecoderSettings.of(info, settings), settings.decode_threads, processes
        )
        metrics = Metrics()
        watchdog = Watchdog(served.image_seconds, metrics.slow_batches.inc)
        engine = WatchedEngine(served.engine, watchdog)
        self._heartbeat = Heartbeat(watchdog, self._end_waiting)
        self._hang: asyncio.Future[str] | None = None
        """Becomes the sentence on a batch that does not return; None before the first batch."""
        self._executors = [BatchExecutor(engine, lane, metrics) for lane in range(info.lanes)]
        self._threads = [ThreadPoolExecutor(1, f"lane-{lane}") for lane in range(info.lanes)]
        self._fetchers = ThreadPoolExecutor(REMOTE_READS, "fetch")
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for lane in range(info.lanes):
            self._free.put_nowait(lane)

    async def embed(self, images: Sequence[PendingImage]) -> list[VectorRecord]:
        """The records of a group of images, in their order.

        Raises:
            EngineLost: the engine cannot go on, or a batch does not return.
            CommandError: a process that decodes has ended, for example because the system's memory was used up.
        """
        tried = [image for image in images if not image.entry.problem]
        decoded = iter(await self._read_and_decode(tried))
        files = [
            DecodedFile(None, f"{image.entry.path}: {image.entry.problem}", 0) if image.entry.problem else next(decoded)
            for image in images
        ]
        whole = [file.patches for file in files if file.patches is not None]
        results = iter(await self._run(whole) if whole else ())
        records = []
        for image, file in zip(images, files, strict=True):
            vector, error = None, file.error
            if not error:
                result = next(results)
                if isinstance(result, ServiceError):
                    error = describe_file_error(image.entry.path, result)
                else:
                    vector = self._finish(result)
            entry = image.entry
            size = file.size if entry.size is None and file.size else entry.size
            records.append(VectorRecord(entry.path, vector, entry.file, error or None, size, entry.modified))
        return records

    def close(self) -> None:
        """Waits for what is being computed, unless it hangs, and ends the threads and processes."""
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(cancel_futures=True)
        hangs = self._hang is not None and self._hang.done()
        for lane in self._threads:
            lane.shutdown(wait=not hangs, cancel_futures=True)
        if self._hang is not None:
            self._heartbeat.stop()

    def __enter__(self) -> Self:
        """Returns the embedder, which has its threads already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    async def _read_and_decode(self, images: Sequence[PendingImage]) -> list[DecodedFile]:
        loop = asyncio.get_running_loop()
        fetched = [image for image in images if image.entry.is_remote or not self._can_decode(image)]
        await asyncio.gather(*(loop.run_in_executor(self._fetchers, image.fetch) for image in fetched))
        unread = [UnreadImage(image.entry.path, image.read) for image in images]
        if self._decode is not None:
            return await loop.run_in_executor(self._decoders, self._decode, unread)
        try:
            return unpack(*await loop.run_in_executor(self._decoders, decode_in_process, unread))
        except BrokenProcessPool:
            raise CommandError(
                "a process that decodes images has ended, perhaps because memory ran out: the same command continues "
                "the run, and a smaller --decode-processes needs less memory"
            ) from None

    def _can_decode(self, image: PendingImage) -> bool:
        """Whether the decoders can read the image."""
        return self._decode is not None or image.entry.is_portable or isinstance(image.read, _Fetched)

    async def _run(self, patches: list[Bytes]) -> list[Result | ServiceError]:
        """The engine's results of images."""
        visible = self.plan.visible_indices
        request = QueuedRequest(self.plan.operation, len(patches), float("inf"), _NoSink())
        is_whole = len(visible) == self._config.num_patches
        batch = [QueueEntry(request, 0, image if is_whole else image[visible], visible, 0.0) for image in patches]
        lane, loop, hang = await self._free.get(), asyncio.get_running_loop(), self._watch()
        try:
            run = loop.run_in_executor(self._threads[lane], self._executors[lane].run, self.plan.operation, batch)
            ends: list[asyncio.Future[Any]] = [run, hang]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                raise EngineLost(hang.result())
            results, _ = run.result()
        except FatalEngineError as error:
            raise EngineLost(str(error)) from error
        finally:
            self._free.put_nowait(lane)
        return results

    def _watch(self) -> asyncio.Future[str]:
        """Watches all batches from now on; returns the future of the sentence on one that does not return."""
        if self._hang is None:
            self._hang = asyncio.get_running_loop().create_future()
            self._heartbeat.start()
        return self._hang

    def _end_waiting(self, reason: str) -> None:
        """Called in the thread of the heartbeat."""
        assert self._hang is not None
        loop = self._hang.get_loop()
        if not loop.is_closed():  # the command was interrupted
            loop.call_soon_threadsafe(self._hang.set_result, reason)

    def _finish(self, result: Result) -> Floats:
        assert not isinstance(result, DecoderOutput)
        pooled = result if self.plan.pool == "tokens" else result[POOL_INDEX[self.plan.pool]]
        vector: Floats = self.plan.finish([pooled])[0]
        return vector


async def run_groups(
    embedder: BatchEmbedder, next_group: Callable[[], list[PendingImage]]
) -> AsyncGenerator[list[VectorRecord]]:
    """Embeds group after group until `next_group` returns an empty one; yields their records in order.

    `next_group` runs in a thread, but never while the caller has the records of a group: the two may share data.

    Raises:
        EngineLost, CommandError: as `BatchEmbedder.embed`; and whatever `next_group` raises.
    """
    running: deque[asyncio.Task[list[VectorRecord]]] = deque()
    try:
        while group := await run_in_thread(next_group):
            if len(running) == embedder.max_groups:
                yield await running.popleft()
            running.append(asyncio.create_task(embedder.embed(group)))
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def run_in_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a thread, and waits for its end even if the caller is cancelled meanwhile."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


@dataclass(frozen=True)
class _Fetched:
    """Returns what a file held when it was read, or raises the reason why it could not be."""

    data: bytes = b""
    problem: str = ""

    def __call__(self) -> bytes:
        if self.problem:
            raise ImageUnreadable(self.problem)
        return self.data


class _NoSink:
    """Nobody waits for single images: a group's results are returned together."""

    def on_taken(self, entries: Sequence[QueueEntry]) -> None:
        """Nothing to do."""

    def on_dropped(self, entries: Sequence[QueueEntry]) -> None:
        """Nothing to do."""

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        """Nothing to do."""

    def on_failed(self, error: ServiceError) -> None:
        """Nothing to do."""
