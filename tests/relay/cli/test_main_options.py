"""`--config`: before a command and after it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from services.relay.__main__ import main


@pytest.mark.usefixtures("typed")  # it takes the log back
@pytest.mark.parametrize("command", [["deliveries"], ["retry", "--channel", "log"]])
def test_the_configuration_may_stand_after_the_command(configuration: Path, command: list[str]) -> None:
    missing = ["--config", str(configuration.with_name("missing.yml"))]
    given = ["--config", str(configuration)]
    results = [
        CliRunner().invoke(main, [*before, *command, *after]) for before, after in ((given, []), (missing, given))
    ]
    assert [result.exit_code for result in results] == [results[0].exit_code] * 2
    assert results[0].output == results[1].output
    assert "missing.yml: cannot be read" in CliRunner().invoke(main, [*command, *missing]).output
