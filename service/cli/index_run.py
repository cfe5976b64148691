"""A run of `mae index`: what is new, replaced or gone, and the engine that embeds it."""

from __future__ import annotations

import os
import re
from collections.abc import Set
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from model.checkpoints.native import Pooled
from model.engines.base import ServedModel
from model.images.packs import PackedImage, is_pack
from service.cli.embedded_files import embed_files
from service.cli.errors import CommandError
from service.cli.image_files import SkippedFile, require_images
from service.cli.image_sources.local import resolved_path
from service.cli.indexed_vectors import VectorSource
from service.cli.local_pipeline import build_engine
from service.cli.progress import ProgressBar
from service.cli.signals import run_until_interrupted
from service.index.approximate import EXACT_ROWS, update_approximation
from service.index.changes import Changes, FoundFile, compare_files, is_inside
from service.index.description import IndexDescription
from service.index.store import ImageIndex
from service.index.table import IndexRow, StoredFile
from service.index.update import IndexUpdate
from service.inference.embedding import EmbeddingPlan
from service.inference.vector_space import space_of
from service.parameters import EmbedParameters
from service.settings import Settings


class IndexParameters(BaseModel):
    """How images are embedded for a new index; an existing index says so itself."""

    model_config = ConfigDict(extra="forbid")

    pool: Pooled = Field("mean", description="mean of the patch tokens, or the cls token")
    whiten: bool | None = Field(
        None,
        description="whiten each vector by the model's PCA whitening for the pool; by default if the model holds one",
    )
    dimensions: int | None = Field(
        None, ge=1, description="whiten each vector and keep this many principal axes, those with the most variance"
    )


class IndexRun:
    """Brings an index up to date with images and vectors; it is locked for other writers inside `with`.

    Attributes:
        added: number of images that the index did not have.
        replaced: number of images that had changed.
        dropped: number of images that were gone, or that have changed and cannot be embedded any more.
        unchanged: number of images that were left as they are.
        skipped: number of images that cannot be embedded.
    """

    def __init__(self, output: Path, parameters: IndexParameters, settings: Settings, thumbnails: bool) -> None:
        """Opens the index at `output` if it exists.

        Raises:
            ImageIndexError: something else is there, or another process writes the index.
            CommandError: the index was made by other parameters.
        """
        self.added = self.replaced = self.dropped = self.unchanged = self.skipped = 0
        self._output, self._parameters, self._settings, self._thumbnails = output, parameters, settings, thumbnails
        self._served: ServedModel | None = None
        self._index: ImageIndex | None = None
        self._locked = ExitStack()
        if output.exists():
            index = ImageIndex.open(output)
            self._require_parameters(index.description.parameters)
            self._lock(index)

    @property
    def index(self) -> ImageIndex:
        """The index, which exists once images or vectors were indexed."""
        assert self._index is not None
        return self._index

    def index_vectors(self, source: VectorSource) -> None:
        """Brings the index up to date with an output of `mae embed`.

        Raises:
            ForeignSpace: its vectors are of another space than the index.
            ImageIndexError: the index cannot be written.
        """
        if self._index is None:
            self._require_parameters(source.description.parameters)
            self._lock(ImageIndex.create(self._output, source.description))
            self._print_whitening()
        self.index.description.require(source.description.space, str(self._output))
        changes = source.compare(self.index)
        wanted = {image.file for image in (*changes.new, *changes.replaced)}
        update = IndexUpdate(self.index, {image.file for image in changes.replaced})
        with ProgressBar(len(wanted), stage="indexing") as progress:
            if source.failed:
                progress.write_line(f"{source.failed} images of {source.path} have no vector, and its errors say why")
            try:
                for row in source.rows(wanted):
                    update.put(row)
                    progress.advance()
            finally:
                update.store()
                self._count(update, changes)
        self._drop(changes.gone)

    def index_images(self, paths: list[Path]) -> None:
        """Brings the index up to date with images and folders of images.

        Raises:
            CommandError: there are no images.
            ForeignSpace: the engine computes vectors of another space than the index.
            ImageIndexError: the index cannot be written.
        """
        found = require_images(paths)
        roots = {resolved_path(str(path)) for path in paths}
        unread = {resolved_path(path) for path, _ in found.refused}
        if self._index is None:
            self._create()
        images = [_find_file(path) for path in found.images]

        def belongs(file: str, known: StoredFile) -> bool:
            return is_inside(file, roots) and not is_inside(file, unread) and not _is_unread_file(file, roots)

        changes = compare_files(self.index.files(), images, belongs)
        with ProgressBar(len(changes.new) + len(changes.replaced) + len(found.refused)) as progress:
            for path, reason in found.refused:
                progress.skip(f"{path}: {reason}")
            if found.left_out.sentence:
                progress.write_line(found.left_out.sentence)
            try:
                if changes.new or changes.replaced:
                    run_until_interrupted(self._embed(changes, progress))
                else:
                    self.unchanged += changes.unchanged
            finally:
                self.skipped += progress.skipped
        self._drop(changes.gone)

    def finish(self) -> None:
        """Tidies the index up, and measures the recall of a large one, unless a run before has done so."""
        is_changed = bool(self.added or self.replaced or self.dropped)
        lacks_cells = self.index.approximation is None and self.index.count > EXACT_ROWS
        if is_changed or lacks_cells:
            self.index.compact()
            with ProgressBar(1, stage="finishing") as progress:
                update_approximation(self.index, EXACT_ROWS, progress.stage)

    def summary(self) -> str:
        """What was done, in words."""
        counts = {
            "added": self.added,
            "replaced": self.replaced,
            "dropped": self.dropped,
            "unchanged": self.unchanged,
            "skipped": self.skipped,
        }
        done = ", ".join(f"{count} {what}" for what, count in counts.items())
        if self._index is None:  # interrupted before it was created
            return done
        approximation = self.index.approximation
        if approximation is None:
            return f"{done}; {self.index.count} images, searched exactly"
        return (
            f"{done}; {self.index.count} images, of which a search finds {approximation.recall:.1%} of the 10 nearest "
            f"({approximation.kind}, {approximation.probes} of {approximation.partitions} cells)"
        )

    def __enter__(self) -> Self:
        """Returns the run, whose index is locked already if it exists."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock."""
        self._locked.close()

    async def _embed(self, changes: Changes, progress: ProgressBar) -> None:
        """Embeds what is new or replaced, and stores it."""
        served = self._engine()
        description = self.index.description
        description.require(space_of(served.info, description.parameters), str(self._output))
        plan = EmbeddingPlan.of(description.parameters, served.info, served.heads)
        images = {image.path: image for image in (*changes.new, *changes.replaced)}
        stored = {image.file for image in changes.replaced}
        update, lost = IndexUpdate(self.index, stored), []
        try:
            embedded = embed_files(images, served, self._settings, plan, self._thumbnails)
            async with aclosing(embedded) as results:
                async for path, result in results:
                    image = images[path]
                    if isinstance(result, SkippedFile):
                        progress.skip(result.reason)
                        if image.file in stored:
                            lost.append(image.file)
                        continue
                    row = IndexRow(
                        image.file, str(path), result.vector, image.size, image.modified, thumbnail=result.thumbnail
                    )
                    update.put(row)
                    progress.advance()
        finally:
            update.store()
            self._count(update, changes)
        self._drop(lost)

    def _create(self) -> None:
        """Creates the index for the vectors of the engine, and says whether they are whitened."""
        served, parameters = self._engine(), self._parameters
        whiten = parameters.whiten
        if whiten is None:
            whiten = parameters.dimensions is not None or parameters.pool in served.heads.whitening
        chosen = parameters.model_dump(include={"pool", "dimensions"}, exclude_none=True) | {"whiten": whiten}
        plan = EmbeddingPlan.of(EmbedParameters(**chosen), served.info, served.heads)
        self._lock(ImageIndex.create(self._output, IndexDescription.of(served.info, plan)))
        self._print_whitening()

    def _print_whitening(self) -> None:
        parameters = self.index.description.parameters
        if parameters.whitens:
            print(f"{self._output}: vectors are whitened by the model's whitening of pool={parameters.pool}")
        else:
            print(
                f"{self._output}: vectors are not whitened, so unrelated images have similarities near 1: "
                "mae evaluate --fit gives a model a whitening"
            )

    def _engine(self) -> ServedModel:
        if self._served is None:
            self._served = build_engine(self._settings)
        return self._served

    def _lock(self, index: ImageIndex) -> None:
        self._locked.enter_context(index.writer())
        self._index = index

    def _require_parameters(self, made_by: EmbedParameters) -> None:
        """Checks that no option asks for other vectors than those that are there."""
        for name in self._parameters.model_fields_set:
            asked = getattr(self._parameters, name)
            there = made_by.whitens if name == "whiten" else getattr(made_by, name)
            if asked is not None and asked != there:
                raise CommandError(
                    f"{name}={asked} is asked for, but the vectors have {name}={there}: choose another output"
                )

    def _count(self, update: IndexUpdate, changes: Changes) -> None:
        self.added += update.added
        self.replaced += update.replaced
        self.unchanged += changes.unchanged

    def _drop(self, files: list[str]) -> None:
        self.index.remove(files)
        self.dropped += len(files)


def _is_unread_file(file: str, read: Set[str]) -> bool:
    """Whether `file` is on the disk, or is the member of an archive or a pack that is, although a search lacks it.

    A folder's archives and packs are not searched, nor are files with other suffixes. The index may have images of them
    from other runs. A pack among `read` was searched, and what it lacks is gone.
    """
    if os.path.isfile(file) or any(os.path.isfile(file[: mark.start()]) for mark in re.finditer("!", file)):
        return True
    place = os.path.dirname(file)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    return place not in read and is_pack(Path(place))


def _find_file(path: str) -> FoundFile:
    """What the file system says of an image now; size and time are unknown if it says nothing."""
    if isinstance(path, PackedImage):
        size: int | None = path.archive.getinfo(path.member).file_size
        of_time = path.removesuffix(f"/{path.member}")  # the pack
    else:
        size, of_time = None, path
    try:
        status = os.stat(of_time)
    except OSError:  # reading it will say why
        return FoundFile(resolved_path(path), path, None, None)
    return FoundFile(resolved_path(path), path, status.st_size if size is None else size, status.st_mtime_ns // 1000)
