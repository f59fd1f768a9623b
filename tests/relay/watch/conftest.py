"""The watch is tried beside a real Alertmanager, which is started as the tests of ops start it."""

from tests.ops.conftest import running, start

__all__ = ["running", "start"]
