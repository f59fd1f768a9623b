"""`keypulse-rotator` as a person types it, in this process: where a test's key in memory is known."""

from unittest.mock import patch

from click.testing import CliRunner, Result

from services.rotator.__main__ import main


def type_command(*arguments: object) -> Result:
    """The exit code and what was printed; only for a test that is no coroutine, since the command runs a loop."""
    with patch("shared.process.logs.configure"):  # the log of this process is that of all its tests
        return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
