"""What glibc keeps of memory that was freed: else a large request would count against the limit for ever.

glibc has a heap for each thread, and takes what was large once for usual: then it keeps that, too. Where the C library
is another, nothing is done. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import ctypes
from typing import Final

_ARENA_MAX: Final = -8
_MMAP_THRESHOLD: Final = -3
_MMAP_THRESHOLD_BYTES: Final = 256 * 1024
"""Bytes from which on memory is the system's own again as soon as it is freed."""


def limit_retained_memory() -> None:
    """For the start of a process that serves."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_ARENA_MAX, 2)
    mallopt(_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def release_free_memory() -> None:
    """After something large."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return
    trim(0)
