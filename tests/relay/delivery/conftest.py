"""A real Prometheus is started as the tests of ops do."""

from tests.ops.conftest import running, start

__all__ = ["running", "start"]
