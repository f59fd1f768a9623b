"""A web.yml that changes while its server runs."""

import os
from pathlib import Path

import bcrypt
import pytest
from structlog.testing import capture_logs

from shared.config.errors import ConfigurationError
from shared.http.web_config import WebConfigFile
from tests.shared.certificates import Authority, web_yml

HASH = bcrypt.hashpw(b"a secret", bcrypt.gensalt(4)).decode()


def _names(web: WebConfigFile) -> list[str]:
    return list(web.get_state().config.basic_auth_users)


@pytest.mark.parametrize("content", ["basic_auth_users: {alice: plain}", "a: [", "b: 1", None])
def test_a_file_that_cannot_be_used_is_refused_at_first_and_later_keeps_what_was(
    content: str | None, tmp_path: Path
) -> None:
    file = web_yml(tmp_path, users={"alice": HASH})
    web = WebConfigFile(file)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(ConfigurationError):
        WebConfigFile(file)
    with capture_logs() as logs:
        assert [_names(web) for _ in range(3)] == [["alice"]] * 3
    (line,) = logs  # once
    assert line["log_level"] == "error"
    assert line["error"].startswith(f"{file}: ")
    web_yml(tmp_path, users={"bob": HASH})
    assert _names(web) == ["bob"]


def test_what_does_not_change_is_not_read_again(tmp_path: Path) -> None:
    web = WebConfigFile(web_yml(tmp_path, users={"alice": HASH}))
    assert web.get_state() is web.get_state()


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file = web_yml(tmp_path, users={"alice": HASH})
    web, before = WebConfigFile(file), file.stat()
    other = tmp_path / "other.yml"
    other.write_text(file.read_text().replace("alice", "carol"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert _names(web) == ["carol"]


def test_tls_comes_and_goes_only_with_a_restart(tmp_path: Path) -> None:
    web = WebConfigFile(web_yml(tmp_path, users={"alice": HASH}))
    Authority(tmp_path).sign("server")
    web_yml(tmp_path, users={"bob": HASH})
    with capture_logs() as logs:
        assert _names(web) == ["alice"]
    assert logs[0]["error"].endswith("tls_server_config: comes or goes only with a restart; restart")
    with_tls = WebConfigFile(web_yml(tmp_path, users={"alice": HASH}))
    (tmp_path / "server.pem").unlink()
    web_yml(tmp_path, users={"bob": HASH})
    assert with_tls.get_state().tls
    assert _names(with_tls) == ["alice"]


def test_a_file_that_lets_everybody_in_is_refused_where_nothing_else_guards_the_server(tmp_path: Path) -> None:
    web = WebConfigFile(web_yml(tmp_path, users={"alice": HASH}))
    web.requires_credentials = True
    web_yml(tmp_path)
    with capture_logs() as logs:
        assert _names(web) == ["alice"]
    assert logs[0]["error"].endswith("expected basic_auth_users or required client certificates")
    web.requires_credentials = False
    web_yml(tmp_path)
    (tmp_path / "web.yml").write_text("# nobody\n")
    assert _names(web) == []
