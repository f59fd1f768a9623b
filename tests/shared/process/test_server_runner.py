"""What a command line's two files must say together, before a server starts and at a reload.

A server without credentials stays on this machine.
"""

from pathlib import Path
from typing import Any

import bcrypt
import pytest

from shared.config.errors import ConfigurationError
from shared.config.server_settings import RESERVED_NAMES, AuthSettings, NamedToken, Role
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


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ("{tokens: [{name: ci, role: viewer, file: a}, {name: ci, role: admin, file: b}]}", "each name once"),
        ("{tokens: [{name: admin, role: viewer, file: a}]}", "none of admin"),
        ("{tokens: [{name: ci, role: viewer, file: a}], roles: {ci: admin}}", "ci is there again"),
        ("{tokens: [{name: SIGHUP, role: viewer, file: a}]}", "SIGHUP is there again"),
        ("{roles: {anonymous: viewer}}", "anonymous is there again"),
        ("{roles: {Sighup: viewer}}", "Sighup is there again"),
        ("{tokens: [{name: CI, role: viewer, file: a}], roles: {ci: viewer}}", "ci is there again"),
        ("{tokens: [{name: 'a b', role: viewer, file: a}]}", "auth.tokens.0.name: "),
        ("{tokens: [{name: ci, role: owner, file: a}]}", "auth.tokens.0.role: "),
        ("{roles: {alice: owner}}", "auth.roles.alice: "),
    ],
)
def test_a_role_that_there_is_not_and_a_name_that_says_nothing_are_named(auth: str, expected: str, file: Path) -> None:
    file.write_text(f"auth: {auth}")
    (line,) = _list_errors(file)
    assert expected in line, line


@pytest.mark.parametrize("name", [*RESERVED_NAMES, "ci", "Admin", "CI", "\uff41dmin"])
def test_a_user_of_web_yml_is_called_as_no_token_is(name: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("the-token-of-somebody")
    file.write_text("auth: {tokens: [{name: ci, role: viewer, file: token}]}")
    (line,) = _list_errors(file, web_yml(tmp_path, users={"alice": HASH, name: HASH}))
    expected = "expected another name; another caller has this one in the audit log"
    assert line == f"{tmp_path}/web.yml: basic_auth_users.{name}: {expected}"


async def test_neither_a_reload_nor_a_changed_web_yml_gives_a_user_the_name_of_a_token(tmp_path: Path) -> None:
    async def apply(_settings: Settings) -> None:
        pass

    def with_token(name: str) -> Settings:
        token = NamedToken(name=name, role=Role.VIEWER, file=tmp_path / "token")
        return SETTINGS.model_copy(update={"auth": AuthSettings(tokens=(token,))})

    runner = ServerRunner(SETTINGS, web_config_file=WebConfigFile(web_yml(tmp_path, users={"alice": HASH})))
    reloaded = runner._wrap_apply(apply)
    with pytest.raises(ConfigurationError, match=r"basic_auth_users\.alice: expected another name"):
        await reloaded(with_token("alice"))
    await reloaded(with_token("bob"))
    web_yml(tmp_path, users={"alice": HASH, "bob": HASH})
    assert runner.web_config_file
    assert list(runner.web_config_file.get_state().config.basic_auth_users) == ["alice"]


def test_the_errors_of_both_files_are_named_at_once(file: Path, tmp_path: Path) -> None:
    file.write_text("count: none")
    (tmp_path / "web.yml").write_text("users: 1")
    assert [line.partition(": ")[0] for line in _list_errors(file, tmp_path / "web.yml")] == [
        f"{tmp_path}/web.yml",
        str(file),
    ]
    (line,) = _list_errors(file, web_yml(tmp_path, users={"alice": HASH}))
    assert line.startswith(f"{file}: count: ")


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
