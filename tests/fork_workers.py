"""The processes of a whole run, forked from one that imported all tests: to import them takes seconds of CPU each time.

Without compiled files, as after a check-out, it takes three times as long.
"""

import gc
import importlib
import os
import shlex
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests import fork_server

_MODULE = "tests.fork_workers"
_WITH_THREADS = ("helm_python", "_gojsonnet")
"""They start threads when they are imported, and no thread is forked: each process imports them itself."""
_GC_THRESHOLDS = gc.get_threshold()


def forked() -> str:
    """What pytest-xdist starts as a Python, with `-u -c CODE`: all tests are imported there."""
    return shlex.join([sys.executable, "-I", "-S", str(fork_server.CLIENT), _find(), _MODULE])


@cache
def _find() -> str:
    return fork_server.start(_MODULE)


class _Serving:
    """Serves in place of a collection: then pytest rewrites what is imported, and warnings are errors."""

    def __init__(self, server: fork_server.Server) -> None:
        self._server = server

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        gc.set_threshold(0)
        _import_all()
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "an import started threads, which are not forked"
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        code = 0
        if forked := self._server.serve():
            _, arguments = forked
            sys.argv = ["-c"]
            main = sys.modules["__main__"] = ModuleType("__main__")  # else each spawned process imports this one
            try:
                exec(arguments[-1], vars(main))  # noqa: S102  # as `python -c` does
            except SystemExit as ended:
                code = int(ended.code or 0)
        fork_server.end(code)


def _import_all() -> None:
    """Imports what each process collects. What cannot be imported is reported by the collection."""
    root = Path(__file__).parent
    for module in _WITH_THREADS:
        sys.modules[module] = None  # type: ignore[assignment]  # so that its import fails
    for file in sorted([*root.rglob("conftest.py"), *root.rglob("test_*.py")]):
        name = ".".join(file.relative_to(root.parent).with_suffix("").parts)
        if not name.startswith("tests.containers."):
            with suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                importlib.import_module(name)
    for module in _WITH_THREADS:
        del sys.modules[module]


def main() -> None:
    serving = _Serving(fork_server.Server(sys.argv[1]))
    os.write(1, fork_server.LISTENS)  # whoever asks from now on waits until all is imported
    os.dup2(2, 1)
    pytest.main(["-s", "-q", "-p", "no:logging"], plugins=[serving])


if __name__ == "__main__":
    main()
