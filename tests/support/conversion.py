"""Conversions in the process of the tests, which has imported torch already."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from model.engines import context
from model.engines.job import ConversionJob


def convert_in_process(
    job: ConversionJob, folder: Path, progress: Callable[[str], None], deadline: float | None = None
) -> None:
    """Takes the place of `convert_in_child`, and does the same without a child process, which imports torch anew."""
    import torch

    from model.engines.convert import convert

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are of torch's own code, and a child process logs them
            convert(job, folder, progress)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def conversions_in_process() -> Iterator[None]:
    """Converts in this process whatever an engine is built of inside the context.

    For tests of which the child process is no part: `test_child.py`, `test_quantise.py` and real servers start one.
    """
    with patch.object(context, "convert_in_child", convert_in_process):
        yield
