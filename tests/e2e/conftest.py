"""Programs that the end-to-end tests share with those of ops."""

from tests.ops.conftest import running

__all__ = ["running"]
