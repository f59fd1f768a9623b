"""What two services use, and nothing else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version


@contextmanager
def without(module: str) -> Iterator[None]:
    """While the body runs, a module that nobody has imported counts as not installed.

    Libraries import others for what nobody here asks them for, which takes memory and a part of each start.
    """
    is_loaded = module in sys.modules
    if not is_loaded:
        sys.modules[module] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        if not is_loaded:
            del sys.modules[module]


with without("rich"):  # coloured tracebacks: 4 MB
    import_module("structlog")

VERSION = version("keypulse")
