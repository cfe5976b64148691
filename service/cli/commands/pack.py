"""`mae pack`: a folder of images -> a few files of a bounded size, which training reads as it reads the folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from model.engines.cpu import available_cpus
from model.images.folders import find_images
from model.images.pack_writer import require_new_pack, write_pack
from service.cli.errors import CommandError
from service.cli.files import require_folder
from service.cli.progress import ProgressBar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def pack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that is searched for images at any depth.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="Pack to write, NAME.pack; its parts go beside it.")
    ],
    side: Annotated[
        int, typer.Option("--side", metavar="<int>", min=1, help="Short side of larger images is scaled down to this.")
    ] = 224,
    quality: Annotated[int, typer.Option("--quality", metavar="<int>", min=1, max=95, help="JPEG quality.")] = 75,
    part_mb: Annotated[
        float, typer.Option("--part-mb", metavar="<float>", min=0.001, max=2000, help="Largest size of a part in MB.")
    ] = 20,
) -> None:
    """Pack a folder of images into a few files, to move them or to train from them.

    The output is a list, NAME.pack, and parts NAME.pack.000, NAME.pack.001, … of at most --part-mb million bytes. `mae
    pretrain`, `finetune`, `evaluate` and `embed` take NAME.pack in place of the folder: names, classes and order are
    the same. Each part is a ZIP archive, which any unzip can read.

    Images are turned upright, scaled down to --side and encoded as JPEG. Smaller ones keep their size. A JPEG that is
    upright and small enough is kept as it is, unless encoding it anew saves a tenth of it.

    Exit code: 0 if every image was packed; 1 if some were skipped, with the reasons on standard error; 2 if the command
    was wrong or could not continue; 129 if SIGHUP ended it, 130 if SIGINT did, 143 if SIGTERM did, and then nothing was
    written.
    """
    require_new_pack(output)
    require_folder(output)
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder")
    paths, refused, left_out = find_images([folder])
    with ProgressBar(len(paths) + len(refused), stage="packing") as progress:
        for path, reason in refused:
            progress.skip(f"{path}: {reason}")
        if left_out.sentence:
            progress.write_line(left_out.sentence)
        try:
            with _raise_on_signals():
                summary = write_pack(
                    folder,
                    paths,
                    output,
                    side=side,
                    quality=quality,
                    part_bytes=int(part_mb * 1e6),
                    threads=available_cpus(),
                    progress=progress,
                )
        except _Ended as error:
            what = f"{output} is complete" if output.exists() else "nothing was written"
            progress.write_line(f"ended by {error.signal.name}: {what}")
            raise typer.Exit(128 + error.signal) from None
    parts = "1 part" if summary.parts == 1 else f"{summary.parts} parts"
    print(
        f"{output}: {summary.images} images in {parts}, {summary.bytes / 1e6:.1f} MB; "
        f"{summary.images - summary.kept} were encoded anew, {summary.kept} kept as they were"
    )
    raise typer.Exit(1 if progress.skipped else 0)


class _Ended(BaseException):
    """A signal came; no part of the program takes this for an error of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextmanager
def _raise_on_signals() -> Iterator[None]:
    """Raises `_Ended` at the first of SIGNALS and ignores others until the clean-up is done.

    A signal that is ignored from the start, as SIGHUP is under nohup, stays ignored.
    """
    handlers = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def end(number: int, frame: FrameType | None) -> None:
        for other in handlers:
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)

    try:
        for number in handlers:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
