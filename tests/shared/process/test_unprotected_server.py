"""A server without credentials stays on this machine: at its start, and at a reload."""

from pathlib import Path
from typing import Any

import bcrypt
import pytest

from shared.config.errors import ConfigurationError
from shared.config.server_settings import AuthSettings
from shared.config.settings import parse_address
from shared.http.web_config import WebConfigFile
from shared.process.server import ServerRunner, prepare_server, refuse_unprotected
from tests.shared.certificates import Authority, web_yml
from tests.shared.sample import SETTINGS, Settings

HASH = bcrypt.hashpw(b"a secret", bcrypt.gensalt(4)).decode()
NETWORK = ["0.0.0.0:9000", "[::]:9000", "192.0.2.1:9000", "example.org:9000"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sample.yml"


def _list_errors(config: Path, web: Path | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        prepare_server(Settings, config, web)
    return refused.value.lines


@pytest.mark.parametrize("listen", NETWORK)
def test_an_address_on_the_network_needs_an_admin_token(listen: str, file: Path) -> None:
    file.write_text(f"listen: '{listen}'")
    (line,) = _list_errors(file)
    assert line.startswith(f"{file}: auth.admin_token_file: expected a file that holds a token")
    (file.parent / "token").write_text("a-token-of-the-tests")
    file.write_text(f"listen: '{listen}'\nauth: {{admin_token_file: token}}")
    assert str(prepare_server(Settings, file, None).settings.listen) == listen


def test_on_the_network_a_token_of_anybody_will_do(file: Path) -> None:
    (file.parent / "token").write_text("the-token-of-somebody")
    file.write_text("listen: 0.0.0.0:9000\nauth: {tokens: [{name: ci, role: viewer, file: token}]}")
    assert prepare_server(Settings, file, None).settings.auth.tokens[0].file == file.parent / "token"


def test_an_address_of_this_machine_needs_none(file: Path) -> None:
    file.write_text("listen: 127.0.0.1:9000")
    assert prepare_server(Settings, file, None).settings.listen.port == 9000


def test_on_the_network_users_or_required_certificates_do_too(file: Path, tmp_path: Path) -> None:
    file.write_text("listen: 0.0.0.0:9000")
    assert prepare_server(Settings, file, web_yml(tmp_path, users={"alice": HASH})).web_config_file
    Authority(tmp_path).sign("server")
    tls: dict[str, Any] = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}
    assert prepare_server(Settings, file, web_yml(tmp_path, **tls)).web_config_file
    tls["client_auth_type"] = "VerifyClientCertIfGiven"
    (line,) = _list_errors(file, web_yml(tmp_path, **tls))
    assert "basic_auth_users or required client certificates" in line


def test_a_server_on_the_network_without_a_token_requires_credentials_of_its_web_yml(tmp_path: Path) -> None:
    web = WebConfigFile(web_yml(tmp_path, users={"alice": HASH}))
    refuse_unprotected(SETTINGS, None, web)
    assert not web.requires_credentials
    network = SETTINGS.model_copy(update={"listen": parse_address("0.0.0.0:1")})
    with_token = network.model_copy(update={"auth": AuthSettings(admin_token_file=tmp_path / "token")})
    refuse_unprotected(with_token, None, web)
    assert not web.requires_credentials
    refuse_unprotected(network, None, web)
    assert web.requires_credentials


async def test_a_reload_may_not_open_a_server_to_the_network_and_one_that_adds_a_token_frees_the_web_yml(
    tmp_path: Path,
) -> None:
    applied: list[Settings] = []

    async def apply(settings: Settings) -> None:
        applied.append(settings)

    alone = SETTINGS.model_copy(update={"listen": parse_address("0.0.0.0:1")})
    with_token = alone.model_copy(update={"auth": AuthSettings(admin_token_file=tmp_path / "token")})
    (tmp_path / "web.yml").write_text("# nobody")
    runner = ServerRunner(with_token, web_config_file=WebConfigFile(tmp_path / "web.yml"))
    reloaded = runner._wrap_apply(apply)
    with pytest.raises(ConfigurationError, match="can be reached from the network"):
        await reloaded(alone)
    assert not applied
    web_yml(tmp_path, users={"alice": HASH})
    await reloaded(alone)
    assert runner.web_config_file
    assert runner.web_config_file.requires_credentials
    await reloaded(with_token)
    assert not runner.web_config_file.requires_credentials
    assert applied == [alone, with_token]
