"""Returns freed memory to the system: glibc would keep that of a large request, counted against the limit, for ever.

glibc has one heap for each thread and adapts its thresholds to large allocations. With another C library nothing is
done. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import ctypes
from typing import Final

_ARENA_MAX: Final = -8
_MMAP_THRESHOLD: Final = -3
_MMAP_THRESHOLD_BYTES: Final = 256 * 1024
"""Bytes of an allocation from which on the memory goes back to the system as soon as it is freed."""


def limit_retained_memory() -> None:
    """Limit what glibc retains; call it at the start of a server."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_ARENA_MAX, 2)
    mallopt(_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def release_free_memory() -> None:
    """Give free memory back to the system; call it after large work."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return
    trim(0)
