"""`init` of rotator and backend: what it prints is a configuration."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from services.backend import __main__ as backend
from services.backend.config import BackendSettings
from services.rotator import __main__ as rotator
from services.rotator.config import RotatorSettings
from shared.config.settings import load_settings

KEY = "projects/p/locations/l/keyRings/r/cryptoKeys/ledger"
BOTH = pytest.mark.parametrize(
    ("main", "model"), [(backend.main, BackendSettings), (rotator.main, RotatorSettings)], ids=["backend", "rotator"]
)


@BOTH
@pytest.mark.parametrize(
    ("options", "key_name"),
    [(["--key", KEY], KEY), (["--key", "team/ledger", "--transit", "https://bao.example:8200"], "ledger")],
    ids=["gcp", "transit"],
)
def test_what_init_prints_is_a_configuration_of_that_key(
    main: click.Command,
    model: type[BackendSettings] | type[RotatorSettings],
    options: list[str],
    key_name: str,
    tmp_path: Path,
) -> None:
    printed = CliRunner().invoke(main, ["init", *options])
    assert (printed.exit_code, printed.stderr) == (0, "")
    (tmp_path / "first.yml").write_text(printed.stdout)
    settings = load_settings(model, tmp_path / "first.yml")
    assert settings.kms.key == key_name
    if len(options) > 2:
        assert settings.kms.service_address == "bao.example:8200"


@BOTH
def test_a_name_that_is_no_key_is_one_line(main: click.Command, model: type[object]) -> None:
    printed = CliRunner().invoke(main, ["init", "--key", "ledger"])
    assert (printed.exit_code, printed.stdout) == (2, "")
    (line,) = printed.stderr.splitlines()
    assert line.startswith("options: kms.key: expected projects/")
