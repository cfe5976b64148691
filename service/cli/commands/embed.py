"""`mae embed`: images, wherever they are -> a folder of shards or one file of vectors, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from model.engines.base import EngineInfo
from service.cli.batch_embedding import BatchEmbedder, PendingImage, run_groups, run_in_thread
from service.cli.errors import CommandError
from service.cli.image_sources.entry import ImageEntry
from service.cli.image_sources.listing import Listing, require_images
from service.cli.local_pipeline import build_engine
from service.cli.options import parameters_of, settings_of
from service.cli.progress import ProgressBar
from service.cli.ray_embedding import RayEngines, open_engines
from service.cli.signals import INTERRUPTED, run_until_interrupted, terminate_as_interrupt
from service.cli.vector_files.file_table import FileEntry, FileTable
from service.cli.vector_files.shard_store import ShardStore, is_shard_folder
from service.cli.vector_files.space import VectorRecord, VectorSpace
from service.cli.vector_files.store import VectorStore
from service.errors import EngineLost
from service.inference.embedding import EmbeddingPlan
from service.parameters import EmbedParameters

MAX_GONE = 3
"""Files that the sentence about those that are gone names."""


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Images, folders, patterns, packs, .tar archives, and URLs of them."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="<path>", help="File or folder/ to create or to add to.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output instead of adding to it.")] = False,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed",
            help="Also embed images again whose size or time of change differs from that in the output, "
            "and say which are gone.",
        ),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try images again whose row in the output has an error.")
    ] = False,
    decode_processes: Annotated[
        int | None,
        typer.Option(
            "--decode-processes",
            min=0,
            metavar="<int>",
            help="Processes that decode images; 0 for threads of this process. By default 0 beside an engine on the "
            "CPU, and on a GPU one for each CPU but one.",
        ),
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray", help="Embed on a Ray cluster; without one, on this machine by Ray.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="<text>", help="The cluster's address; by default RAY_ADDRESS."),
    ] = None,
    ray_engines: Annotated[
        int | None,
        typer.Option(
            "--ray-engines", min=1, metavar="<int>", help="Most engines on the cluster; by default all that fit."
        ),
    ] = None,
    ray_gpus: Annotated[
        float | None,
        typer.Option(
            "--ray-gpus",
            min=0,
            metavar="<float>",
            help="GPUs of each engine; by default 1, if there are any.",
        ),
    ] = None,
    **options: Any,
) -> None:
    r"""Turn images into a folder of Parquet shards, or into one file of vectors.

    A file may have any name. A folder is searched at any depth for JPEG, PNG, WebP, BMP, AVIF, GIF and TIFF,
    and for HEIC if the extra heif is installed. A pattern in quotes is matched here (\*\* stands for folders). The
    images of a .tar (.tar.gz, .tgz, .tar.bz2, .tar.xz) are named ARCHIVE!MEMBER. URLs such as s3://bucket/folder/,
    gs://… and https://… need the extra bucket; credentials come from where its packages look for them, and are never
    stored or shown.

    An output that ends in a slash, or is a folder, gets shards part-00000.parquet, … with the columns path, file,
    vector, error, size and modified. An image that fails has a row with its error and no vector. Otherwise the suffix
    decides the format, and images that fail are left out. Here n is the number of images, D the length of a vector and
    K the number of visible patches.

    - .npz: the arrays paths \[n], files \[n] and vectors \[n, D] (for tokens \[n, K, D]); other arrays hold space,
    model, pool and so on.

    - .parquet: the columns of a shard; the schema's metadata holds space, model, pool and so on as JSON,
    under mae-serve.

    - .jsonl: one object per line, with path, file, vector, space, and properties (model, pool and so on).

    If the output exists, vectors are added to it: images that it holds are not embedded again. An image is recognised
    by its file, which is the absolute path without links, so that the command may be repeated from another folder. The
    work of an unfinished run is kept in the folder OUTPUT.partial (FOLDER/.partial), and the same command continues it.
    Vectors of another space (model, precision, preprocessing, pool, whitening, normalization, share of visible patches)
    are never mixed in; nor are vectors added to files of earlier versions, which did not convert colour profiles.

    With --ray, the machines of a Ray cluster read, decode and embed, and this process lists the images and writes the
    output. Rows and, in fp32 on CPUs, bits are the same. Paths of images and weights must exist on every machine.

    Exit code: 0 if every image was embedded; 1 if some were skipped or have a row with an error, with the reasons on
    standard error; 2 if the command was wrong or could not continue; 130 if it was interrupted.
    """
    parameters, settings = parameters_of(EmbedParameters, options), settings_of(options)
    target, is_folder = Path(output), is_shard_folder(output)
    if (changed or retry_failed) and not is_folder:
        flag = "--changed" if changed else "--retry-failed"
        raise CommandError(f"{flag} needs an output that is a folder, such as vectors/, and {output} is a file")
    given = {"--ray-address": ray_address, "--ray-engines": ray_engines, "--ray-gpus": ray_gpus}
    if needless := [name for name, value in given.items() if value is not None and not on_ray]:
        raise CommandError(f"{needless[0]} needs --ray")
    if on_ray and decode_processes is not None:
        raise CommandError("--decode-processes has no meaning with --ray, which decodes in processes of its own")
    listing = Listing(paths)
    require_images(listing)
    with (
        terminate_as_interrupt(),
        (ShardStore if is_folder else VectorStore)(target, overwrite) as store,
        open_engines(settings, ray_address, ray_engines, ray_gpus) if on_ray else nullcontext() as cluster,
    ):
        served = cluster or build_engine(settings)
        if parameters.keep < 1 and parameters.seed is None and store.space is not None:
            parameters = parameters.model_copy(update={"seed": store.space.seed})
        plan = EmbeddingPlan.of(parameters, served.info, served.heads)
        store.begin(VectorSpace.of(served.info, plan))
        processes = (
            _default_processes(served.info, settings.decode_threads) if decode_processes is None else decode_processes
        )
        with ProgressBar(listing.count()) as progress:
            selection = Selection(iter(listing), store.known, changed, retry_failed)
            run = _Run(selection, store, progress)
            try:
                if isinstance(served, RayEngines):
                    run.store_each(served.embed(selection.take, plan))
                else:
                    with BatchEmbedder(served, settings, plan, processes) as embedder:
                        run_until_interrupted(run.embed(embedder))
                store.finish()
            except KeyboardInterrupt:
                progress.write_line(f"interrupted: {progress.done} embedded so far; the same command continues the run")
                raise typer.Exit(INTERRUPTED) from None
            except EngineLost:
                progress.write_line(f"{progress.done} embedded so far; the same command continues the run")
                raise
    if listing.left_out.sentence:
        progress.write_line(listing.left_out.sentence)
    progress.write_line(
        f"{progress.done} embedded, {selection.stored} already stored, {progress.skipped} skipped: {output}"
    )
    if selection.failed_before:
        progress.write_line(f"{selection.failed_before} had failed in an earlier run: --retry-failed tries them again")
    if changed and isinstance(store, ShardStore):
        _report_changes(selection, store, listing, progress)
    raise typer.Exit(1 if progress.skipped or selection.failed_before else 0)


@dataclass
class Selection:
    """Which of the listed images are embedded."""

    entries: Iterator[ImageEntry]
    known: FileTable
    """The files that have rows; those that are listed are put in too, and marked."""
    changed: bool
    """Whether images are embedded again that were changed."""
    retry_failed: bool
    """Whether images are embedded again that had failed."""
    stored: int = 0
    """Images that are not embedded, because they have a vector or were named before."""
    failed_before: int = 0
    """Images that are not tried, because they have a row with an error."""
    num_changed: int = 0
    """Images that are embedded again because they were changed."""

    def take(self, count: int) -> Iterator[ImageEntry]:
        """The next `count` images to embed; fewer at the end."""
        return islice(filter(self._is_wanted, self.entries), count)

    def _is_wanted(self, entry: ImageEntry) -> bool:
        found = self.known.find(entry.file)
        if found is None:
            self.known.put(entry.file, FileEntry(entry.size, entry.modified, -1, -1, failed=False, named=True))
            return True
        if found.named:
            self.stored += 1
            return False
        self.known.put(entry.file, found._replace(named=True))
        if self.changed and _differs(entry, found):
            self.num_changed += 1
            return True
        if found.failed and self.retry_failed:
            return True
        self.failed_before += found.failed
        self.stored += not found.failed
        return False


@dataclass
class _Run:
    """From the selection to the store, a group at a time."""

    selection: Selection
    store: ShardStore | VectorStore
    progress: ProgressBar
    _passed: int = 0
    _refused: list[VectorRecord] = field(default_factory=list)

    async def embed(self, embedder: BatchEmbedder) -> None:
        """Embeds what is selected, and stores the records in the order of the list.

        Raises:
            EngineLost, CommandError, PackError: as `run_groups` and `Listing`.
        """

        def next_group() -> list[PendingImage]:
            return [PendingImage(entry) for entry in self.selection.take(embedder.batch)]

        async with aclosing(run_groups(embedder, next_group)) as groups:
            async for records in groups:
                await run_in_thread(lambda records=records: self._store(records))  # type: ignore[misc]
                self._show(records)

    def store_each(self, records: Iterable[VectorRecord]) -> None:
        """Stores records as they come."""
        for record in records:
            self._store([record])
            self._show([record])

    def _store(self, records: list[VectorRecord]) -> None:
        for record in records:
            if record.vector is not None or isinstance(self.store, ShardStore):
                self.store.append(record)

    def _show(self, records: list[VectorRecord]) -> None:
        for record in records:
            if record.error is None:
                self.progress.advance()
            else:
                self.progress.skip(record.error)
        passed = self.selection.stored + self.selection.failed_before
        self.progress.pass_over(passed - self._passed)
        self._passed = passed


def _differs(entry: ImageEntry, found: FileEntry) -> bool:
    """Whether an image was changed since it was embedded, or may have been, because its source does not say."""
    return None in (entry.size, entry.modified) or (entry.size, entry.modified) != (found.size, found.modified)


def _default_processes(info: EngineInfo, cpus: int) -> int:
    return 0 if info.device == "cpu" else max(1, cpus - 1)


def _report_changes(selection: Selection, store: ShardStore, listing: Listing, progress: ProgressBar) -> None:
    """Says how many images were changed, and which are gone."""
    count, names = 0, []
    for file in store.unnamed_files():
        if listing.is_gone(file):
            count += 1
            names += [file] if count <= MAX_GONE else []
    gone = (
        f"; {count} are gone, and keep their rows: {', '.join(names)}{', …' if count > MAX_GONE else ''}"
        if count
        else ""
    )
    progress.write_line(f"{selection.num_changed} were changed, and are embedded anew{gone}")
