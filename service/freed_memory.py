"""Memory that was freed goes back to the system, also where the C library would keep it; needs glibc."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGE_BLOCK_BYTES = 8_000_000
"""The usual photograph needs no block as large; to fetch and return it for each image would cost time."""
TRIM_S = 10.0


def share_one_arena() -> None:
    """Makes all threads take memory from one arena of glibc; does nothing elsewhere. Call this before they start.

    By default each thread gets one of up to eight arenas per CPU, and what a thread frees in its own the others cannot
    use. For each new number of visible patches, OpenVINO keeps compiled code among much that it frees, so every arena
    would grow for long. See mallopt(3).
    """
    library = _glibc()
    if library is not None:
        library.mallopt(M_ARENA_MAX, 1)


def return_large_blocks() -> None:
    """Makes glibc give every large block of memory back to the system as soon as it is freed; does nothing elsewhere.

    By default glibc raises its threshold with each large block that is freed, up to 32 MB, and keeps freed blocks below
    it. Decoded pictures consist of blocks of 16 MB, so each thread would keep those of its largest picture, beside what
    the decodes of other threads hold. See mallopt(3).
    """
    library = _glibc()
    if library is not None:
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK_BYTES)


def start_trimming(every_s: float = TRIM_S) -> threading.Event:
    """Starts a thread that gives the smaller blocks back every `every_s` seconds; does nothing without glibc.

    glibc keeps freed blocks between others that are in use, so after a full queue it would keep most of the images that
    have waited. See malloc_trim(3).

    Returns:
        An event that ends the thread.
    """
    library, ended = _glibc(), threading.Event()

    def trim(malloc_trim: Callable[[int], int]) -> None:
        while not ended.wait(every_s):
            malloc_trim(0)

    if library is not None:
        threading.Thread(target=trim, args=(library.malloc_trim,), name="trim", daemon=True).start()
    return ended


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
