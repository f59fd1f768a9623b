"""What a command line's two files must say together, before a server starts and at a reload."""

from pathlib import Path

import bcrypt
import pytest

from shared.config.errors import ConfigurationError
from shared.config.server_settings import RESERVED_NAMES, AuthSettings, NamedToken, Role
from shared.http.web_config import WebConfigFile
from shared.process.server import ServerRunner, prepare_server
from tests.shared.certificates import web_yml
from tests.shared.sample import SETTINGS, Settings

HASH = bcrypt.hashpw(b"a secret", bcrypt.gensalt(4)).decode()


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
