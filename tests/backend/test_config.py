from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.backend.config import BackendSettings
from shared.config.errors import ConfigurationError
from shared.config.server_settings import RESERVED_NAMES
from shared.config.settings import Address, load_settings
from shared.sql.database_url import create_sqlite_url

Configuration = Callable[..., Path]


def test_the_contracts_example_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "backend.yml"
    file.write_text("""
listen: 127.0.0.1:8000
database: sqlite:////var/lib/keypulse/backend.db
kms: {provider: gcp, key: projects/demo/locations/global/keyRings/app/cryptoKeys/ledger, endpoint: 127.0.0.1:9010, insecure: true}
admin: {token_file: /run/secrets/admin_token}
local_key_file: /var/lib/keypulse/local.key
""")  # noqa: E501 - as the contract has it
    settings = load_settings(BackendSettings, file)
    assert settings.listen == Address("127.0.0.1", 8000)
    assert settings.database == create_sqlite_url(Path("/var/lib/keypulse/backend.db"))
    assert settings.admin.token_file == Path("/run/secrets/admin_token")
    assert settings.local_key_file == Path("/var/lib/keypulse/local.key")
    assert (settings.kms_check_interval, settings.kms_timeout) == (10.0, 2.0)


def test_the_documents_backend_lets_the_documents_rotator_in() -> None:
    pages = Path(__file__).parents[2] / "docs/configuration"
    backend, rotator = (
        yaml.safe_load((pages / f"{name}.md").read_text().partition("\n```yaml\n")[2].partition("```")[0])
        for name in ("backend", "rotator")
    )
    assert backend["admin"]["token_file"] == rotator["driver"]["token_file"]
    assert backend["kms"]["key"] == rotator["kms"]["key"]


@pytest.mark.parametrize(
    "auth", [{"tokens": [{"name": "ci", "role": "viewer", "file": "token"}]}, {"roles": {"ci": "admin"}}]
)
def test_who_may_call_the_admin_api_is_called_as_nobody_else_is(auth: object, configuration: Configuration) -> None:
    admin = {"tokens": [{"name": "ci", "role": "viewer", "file": "token"}]}
    assert load_settings(BackendSettings, configuration("127.0.0.1:9010", admin=admin)).list_reserved_names() == [
        *RESERVED_NAMES,
        "ci",
    ]
    with pytest.raises(ConfigurationError, match=r"admin: expected each name once, .*; ci is there again"):
        load_settings(BackendSettings, configuration("127.0.0.1:9010", admin=admin, auth=auth))


def test_postgresql_is_the_other_database_and_its_password_stands_in_a_file(configuration: Configuration) -> None:
    url = "postgresql://keypulse@db.example.org/backend?passfile=pgpass"
    file = configuration("127.0.0.1:9010", database=url)
    database = load_settings(BackendSettings, file).database
    assert (database.drivername, database.host, database.database) == ("postgresql", "db.example.org", "backend")
    assert database.query["passfile"] == str(file.parent / "pgpass")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"kms_check_interval": "0s"}, "kms_check_interval: expected more than 0"),
        ({"kms_timeout": "soon"}, "kms_timeout: expected a duration such as 30s, 5m or 1h30m, got 'soon'"),
        ({"databse": "sqlite:////x"}, "databse: unknown key"),
        ({"local_key_file": None}, "local_key_file: "),
    ],
)
def test_an_error_is_named_in_one_line(overrides: dict[str, Any], expected: str, configuration: Configuration) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(BackendSettings, configuration("127.0.0.1:9010", **overrides))
    (line,) = refused.value.lines
    assert expected in line
