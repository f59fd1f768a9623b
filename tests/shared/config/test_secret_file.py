import hmac
import os
import tempfile
from pathlib import Path

import pytest
import structlog

from shared.config.secret_file import PasswordFile, SecretFile, SecretUnreadableError, TokenFile
from tests.unreadable_files import as_nobody


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "token"


def test_of_two_secrets_both_are_let_in_and_the_first_is_sent(file: Path) -> None:
    file.write_text("new\nold\n")
    secret = SecretFile(file)
    assert secret.read_value() == "new"
    assert [
        secret.matches(candidate.encode()) for candidate in ("new", "old", "new\nold", "ne", "newer", "", "NEW", "ü")
    ] == [
        True,
        True,
        *[False] * 6,
    ]


def test_each_secret_is_compared_in_constant_time_also_after_one_that_matches(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def record_comparison(candidate: bytes, secret: bytes) -> bool:
        compared.append((candidate, secret))
        return compare(candidate, secret)

    monkeypatch.setattr(hmac, "compare_digest", record_comparison)
    file.write_text("first\nsecond\n")
    assert SecretFile(file).matches(b"first")
    assert compared == [(b"first", b"first"), (b"first", b"second")]


def test_a_changed_file_counts_from_the_next_call(file: Path) -> None:
    file.write_text("first")
    secret = SecretFile(file)
    assert secret.matches(b"first")
    file.write_text("second")
    assert (secret.matches(b"first"), secret.matches(b"second")) == (False, True)


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(file: Path) -> None:
    file.write_text("one")
    secret = SecretFile(file)
    assert secret.matches(b"one")
    status = file.stat()
    other = file.with_suffix(".new")
    other.write_text("two")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert (secret.matches(b"one"), secret.matches(b"two")) == (False, True)


def test_other_content_in_the_same_file_of_the_same_size_and_time_is_read(file: Path) -> None:
    file.write_text("one")
    secret = SecretFile(file)
    assert secret.matches(b"one")
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (secret.matches(b"one"), secret.matches(b"two")) == (False, True)


def test_a_file_that_disappears_lets_nobody_in_any_more(file: Path) -> None:
    file.write_text("one")
    secret = SecretFile(file)
    assert secret.matches(b"one")
    file.unlink()
    with pytest.raises(SecretUnreadableError):
        secret.matches(b"one")


def test_a_swapped_folder_behind_a_link_is_seen_as_kubernetes_does_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    (tmp_path / "data").symlink_to("one")
    secret = SecretFile(tmp_path / "data" / "token")
    assert secret.matches(b"one")
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "data")
    assert (secret.matches(b"one"), secret.matches(b"two")) == (False, True)


def test_a_file_that_is_made_unreadable_lets_nobody_in_any_more() -> None:
    with tempfile.TemporaryDirectory() as folder, as_nobody(Path(folder)):
        file = Path(folder, "token")
        file.write_text("one")
        secret = SecretFile(file)
        assert secret.matches(b"one")
        file.chmod(0)
        for _ in range(2):
            with pytest.raises(SecretUnreadableError, match=f"{file}: Permission denied"):
                secret.matches(b"one")
        file.chmod(0o600)
        assert secret.matches(b"one")


def test_comments_and_empty_lines_are_no_secrets(file: Path) -> None:
    file.write_text("# of the relay, since May\n\none\n  # the one before\ntwo\n")
    secret = SecretFile(file)
    assert secret.read_values() == ("one", "two")
    assert not secret.matches(b"# of the relay, since May")
    file.write_text("# nothing else\n")
    with pytest.raises(SecretUnreadableError, match="is empty"):
        secret.read_values()


def test_a_password_of_others_may_start_like_a_comment(file: Path) -> None:
    file.write_text("#secret\n")
    assert PasswordFile(file).read_value() == "#secret"


def test_a_short_token_lets_nobody_in(file: Path) -> None:
    file.write_text("x" * 16 + "\n")
    tokens = TokenFile(file)
    assert tokens.matches(b"x" * 16)
    file.write_text("x" * 16 + "\n" + "y" * 15)
    for candidate in (b"x" * 16, b"y" * 15):
        with pytest.raises(SecretUnreadableError, match="has a token of less than 16 characters") as refused:
            tokens.matches(candidate)
        assert "yyy" not in str(refused.value)


def test_the_log_says_once_that_a_token_file_cannot_be_used_and_once_that_it_can_again(file: Path) -> None:
    tokens = TokenFile(file)
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            assert tokens.error == f"{file}: No such file or directory"
            with pytest.raises(SecretUnreadableError):
                tokens.matches(b"x" * 16)
        file.write_text("x" * 16)
        for _ in range(5):
            assert tokens.matches(b"x" * 16)
            assert tokens.error is None
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("error", "token file is unreadable; requests get 503"),
        ("info", "token file is readable again"),
    ]


def test_a_missing_file_is_an_error_that_names_it_and_ends_when_it_appears(file: Path) -> None:
    secret = SecretFile(file)
    with pytest.raises(SecretUnreadableError, match=f"{file}: No such file"):
        secret.read_values()
    file.write_text("one")
    assert secret.matches(b"one")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_an_empty_or_unreadable_content_is_an_error_without_the_content(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    secret = SecretFile(file)
    for _ in range(2):
        with pytest.raises(SecretUnreadableError, match=r"is empty; expected a secret|it is not UTF-8"):
            secret.matches(b"")
