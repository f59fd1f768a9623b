import pytest

from shared.config.settings import check_base_url, check_http_url, check_secret_url


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://h/x?y=1#z", "http://[::1]:1/", "http://u:p@h"])
def test_what_an_http_client_can_use_is_a_url(url: str) -> None:
    assert check_http_url(url) == url


@pytest.mark.parametrize("check", [check_http_url, check_base_url, check_secret_url])
@pytest.mark.parametrize(
    "url",
    [
        *("", "h:8000", "ftp://hunter2", "http://", "http://h:0", "http://h:x", "http://[hunter2", "http://a b"),
        *("http://h/\nx", f"http://{'a' * 64}.example.org", "http://a..b"),
    ],
)
def test_anything_else_is_refused_and_not_repeated(check: object, url: str) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as refused:
        check(url)  # type: ignore[operator]  # one of three functions
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://me:hunter2@h", "http://me@h", "http://h?x=1", "http://h#x"])
def test_a_base_url_has_neither_user_nor_query(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL such as https://HOST, without a user, a password or a query"):
        check_base_url(url)


def test_paths_are_appended_to_a_base_url() -> None:
    assert check_base_url("http://h/path/") == "http://h/path"
    assert check_base_url("http://me:x@h", allow_user=True) == "http://me:x@h"
    with pytest.raises(ValueError, match="without a query"):
        check_base_url("http://me:x@h?y", allow_user=True)


@pytest.mark.parametrize("url", ["https://h/secret", "http://127.0.0.1/secret", "http://localhost:1", "http://[::1]"])
def test_a_secret_goes_over_tls_or_stays_on_this_machine(url: str) -> None:
    assert check_secret_url(url) == url


def test_a_secret_goes_nowhere_in_plaintext_unless_that_is_allowed() -> None:
    with pytest.raises(ValueError, match="expected https://, because http:// would send the secret in plaintext"):
        check_secret_url("http://h/secret")
    assert check_secret_url("http://h/secret", allow_remote_insecure=True) == "http://h/secret"
    with pytest.raises(ValueError, match="without a user or a password"):
        check_secret_url("https://me@h/secret")
