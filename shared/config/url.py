"""URLs of HTTP servers among settings and options, checked before anything is sent to them.

Errors never repeat the URL: it may hold a password or a token.
"""

from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

from shared.config.file_checks import FileCheck, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import Address, FilePath


def check_http_url(url: str) -> str:
    """Return the URL if an HTTP client can use it. Raises ValueError with what was expected."""
    _split(url, "expected an http:// or https:// URL without spaces and line breaks")
    return url


def check_base_url(url: str, *, allow_user: bool = False) -> str:
    """Return the URL, to which paths are appended, without its last slash. Raises ValueError with what was expected."""
    without = "a query" if allow_user else "a user, a password or a query"
    expected = f"expected a URL such as https://HOST, without {without}"
    parts = _split(url, expected)
    if parts.query or parts.fragment or (parts.username is not None and not allow_user):
        raise ValueError(expected)
    return url.rstrip("/")


def check_secret_url(url: str, *, allow_remote_insecure: bool = False) -> str:
    """Return the URL if secrets are safe in transit: https, or http on this machine.

    Args:
        url: it may hold a secret in its path or query, but no user.
        allow_remote_insecure: accepts http everywhere.

    Raises:
        ValueError: says what was expected.
    """
    expected = "expected a URL such as https://HOST/PATH, without a user or a password"
    parts = _split(url, expected)
    if parts.username is not None:
        raise ValueError(expected)
    is_exposed = parts.scheme == "http" and not Address(parts.hostname or "", 0).is_loopback
    if is_exposed and not allow_remote_insecure:
        raise ValueError("expected https://, because http:// would send the secret in plaintext beyond this machine")
    return url


def _check_provider_url(url: str, info: ValidationInfo) -> str:
    return check_secret_url(url, allow_remote_insecure=info.data.get("allow_remote_insecure", False))


def _split(url: str, expected: str) -> SplitResult:
    if not url.isprintable() or " " in url:  # urlsplit drops some of them
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise ValueError(expected)
    try:
        host.encode("idna")  # as every lookup of a name does
    except UnicodeError:
        raise ValueError("expected a host whose parts between the dots have 1 to 63 characters each") from None
    return parts


_EXPECTED_URL_FILE: Final = "expected a file with the URL on its first line"
UrlFilePath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_URL_FILE, check_http_url))]
"""A file with the URL of an HTTP server, which is a secret itself; `--check` checks its shape."""
HttpUrl = Annotated[str, AfterValidator(check_http_url)]
"""Any URL of an HTTP server."""
BaseUrl = Annotated[str, AfterValidator(check_base_url)]
"""A URL to which paths are appended."""
PageLinks = dict[Annotated[str, Field(min_length=1, max_length=40)], BaseUrl]
"""Links to other pages, by their text."""
ProviderUrl = Annotated[str, AfterValidator(_check_provider_url)]
"""Where a provider is reached: https, or http on this machine, or anywhere with `allow_remote_insecure` beside it."""
