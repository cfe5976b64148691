"""Collections embedded on a Ray cluster, for `mae embed --ray`: listed and stored here, read and decoded there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from model.checkpoints.heads import Heads
from model.engines.base import EngineInfo
from service.cli.batch_embedding import PendingImage
from service.cli.errors import CommandError, describe_file_error
from service.cli.image_decoding import DecodedFile, DecoderSettings, FileDecoder, UnreadImage
from service.cli.image_sources.entry import ImageEntry
from service.cli.local_pipeline import open_pipeline
from service.cli.vector_files.space import VectorRecord
from service.inference.embedding import EmbeddingPlan
from service.settings import Settings

if TYPE_CHECKING:
    from service.cluster.data import EngineResources, Row

MAX_IMAGES = 200_000
"""Images that are listed at a time; with each such part of a collection the engines are loaded anew."""
MAX_BYTES = 256_000_000
"""Bytes of images that are read here, since they come one after the other, as in a compressed archive."""


@dataclass(frozen=True)
class RayEngines:
    """The engines of a cluster."""

    info: EngineInfo
    heads: Heads
    _settings: Settings
    _resources: EngineResources

    def embed(self, take: Callable[[int], Iterator[ImageEntry]], plan: EmbeddingPlan) -> Iterator[VectorRecord]:
        """Embeds images; yields their records in order.

        Args:
            take: returns the next images, at most so many; none at the end.
            plan: how they are embedded.

        Raises:
            CommandError: the cluster cannot go on.
        """
        from service.cluster.data import ClusterError, EmbeddingJob, embed_on_cluster

        decode = partial(_decode_files, DecoderSettings.of(self.info, self._settings))
        drawn = {} if plan.seed is None else {"seed": plan.seed}
        parameters = plan.parameters.model_copy(update=drawn)
        job = EmbeddingJob(self._settings, parameters, decode, describe_file_error, open_pipeline)
        while images := _take_part(take):
            tried = [UnreadImage(image.entry.path, image.read) for image in images if not image.entry.problem]
            rows = embed_on_cluster(tried, self.info, job, self._resources) if tried else iter(())
            try:
                for image in images:
                    yield _record(image.entry, rows)
            except ClusterError as error:
                raise CommandError(str(error)) from error


@contextmanager
def open_engines(
    settings: Settings, address: str | None, max_engines: int | None, num_gpus: float | None
) -> Iterator[RayEngines]:
    """Connects to a cluster, and builds an engine there to learn what it is.

    Args:
        settings: of the engines.
        address: as `service.cluster.data.connect` takes it.
        max_engines: largest number of engines; None: as many as there is room for.
        num_gpus: GPUs of each engine; None: one, or none where there are no GPUs.

    Raises:
        CommandError: Ray is not installed, there is no cluster, or the engine cannot be built.
    """
    try:
        from service.cluster.data import ClusterError, choose_resources, connect, describe_engine
    except ImportError as error:
        raise CommandError("--ray needs the package ray: pip install 'ray[serve,data]'") from error
    try:
        with connect(address):
            resources = choose_resources(settings, max_engines, num_gpus)
            info, heads = describe_engine(settings, resources)
            yield RayEngines(info, heads, settings, resources)
    except ClusterError as error:
        raise CommandError(str(error)) from error


def _take_part(take: Callable[[int], Iterator[ImageEntry]]) -> list[PendingImage]:
    """The next images of a collection, as many as are embedded at a time."""
    images: list[PendingImage] = []
    size = 0
    for entry in take(MAX_IMAGES):
        image = PendingImage(entry)
        images.append(image)
        size += (entry.size or 0) if entry.in_sequence else 0
        if size > MAX_BYTES:
            break
    return images


def _record(entry: ImageEntry, rows: Iterator[Row]) -> VectorRecord:
    """The record of an image, by the next of `rows` unless it could not be tried."""
    vector, error, size = (None, f"{entry.path}: {entry.problem}", 0) if entry.problem else next(rows)
    return VectorRecord(entry.path, vector, entry.file, error or None, entry.size or size or None, entry.modified)


def _decode_files(settings: DecoderSettings, images: Sequence[UnreadImage]) -> list[DecodedFile]:
    """Reads and decodes images, in a process of the cluster."""
    return FileDecoder(settings)(images)
