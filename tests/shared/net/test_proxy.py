"""Which proxy the environment names for a URL, and what a proxy's URL may be."""

import pytest

from shared.config.settings import Address
from shared.net.egress import EgressError, Proxy, find_environment_proxy, parse_proxy_url

PROXIES = {"HTTPS_PROXY": "http://secure:3128", "HTTP_PROXY": "http://plain:3128"}


def found(url: str, **environment: str) -> str | None:
    proxy = find_environment_proxy(url, environment)
    return str(proxy.address) if proxy else None


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://slack.com/api/", "secure:3128"),
        ("http://slack.com/api/", "plain:3128"),
        ("smtp://slack.com:587", None),
        ("https://localhost/", None),
        ("https://127.0.0.1:8443/", None),
        ("https://127.9.9.9/", None),
        ("https://[::1]/", None),
        ("https://localhost.example.org/", "secure:3128"),
    ],
)
def test_the_scheme_chooses_the_variable_and_this_machine_is_direct(url: str, address: str | None) -> None:
    assert found(url, **PROXIES) == address
    assert found(url, **{name.lower(): value for name, value in PROXIES.items()}) == address


def test_each_scheme_has_its_own_variable_and_empty_is_none() -> None:
    assert found("https://slack.com/", HTTP_PROXY="http://plain:3128") is None
    assert found("http://slack.com/", HTTPS_PROXY="http://secure:3128") is None
    assert found("https://slack.com/", HTTPS_PROXY="") is None
    assert found("https://slack.com/", HTTPS_PROXY="", https_proxy="http://small:1") == "small:1"
    assert found("https://slack.com/", HTTPS_PROXY="http://capital:1", https_proxy="http://small:1") == "capital:1"


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("*", "https://slack.com/"),
        ("example.org, *", "https://slack.com/"),
        ("slack.com", "https://slack.com/"),
        ("slack.com", "https://hooks.slack.com/"),
        ("SLACK.com", "https://Hooks.Slack.COM./"),
        (".slack.com", "https://hooks.slack.com/"),
        ("*.slack.com", "https://hooks.slack.com/"),
        ("a.org,slack.com,b.org", "https://slack.com/"),
        (" a.org , slack.com ", "https://slack.com/"),
        ("slack.com:443", "https://slack.com/"),
        ("slack.com:8443", "https://hooks.slack.com:8443/"),
        ("10.1.2.3", "https://10.1.2.3/"),
        ("10.0.0.0/8", "https://10.1.2.3/"),
        ("10.1.2.3/8", "https://10.9.9.9/"),
        ("10.1.2.3:8443", "https://10.1.2.3:8443/"),
        ("fd00::/8", "https://[fd00::1]/"),
        ("fd00::1", "https://[fd00::1]/"),
        ("[fd00::1]:8443", "https://[fd00::1]:8443/"),
    ],
)
def test_no_proxy_exempts(no_proxy: str, url: str) -> None:
    assert found(url, **PROXIES, NO_PROXY=no_proxy) is None
    assert found(url, **PROXIES, no_proxy=no_proxy) is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("", "https://slack.com/"),
        (",,", "https://slack.com/"),
        ("lack.com", "https://slack.com/"),
        ("slack.com.evil.org", "https://slack.com/"),
        ("slack.com", "https://slack.com.evil.org/"),
        (".slack.com", "https://slack.com/"),
        ("slack.com:8443", "https://slack.com/"),
        ("10.0.0.0/8", "https://11.1.2.3/"),
        ("10.1.2.3", "https://10.1.2.30/"),
        ("10.1.2.3:443", "https://10.1.2.3:8443/"),
        ("10.0.0.0/8", "https://slack.com/"),
        ("fd00::/8", "https://10.1.2.3/"),
        ("[fd00::1]:8443", "https://[fd00::1]/"),
    ],
)
def test_no_proxy_does_not_exempt(no_proxy: str, url: str) -> None:
    assert found(url, **PROXIES, NO_PROXY=no_proxy) == "secure:3128"


def test_a_login_is_decoded_and_never_shown() -> None:
    proxy = parse_proxy_url("http://me:p%40ss%3A@proxy:3128/", "HTTPS_PROXY")
    assert proxy == Proxy(Address("proxy", 3128), "HTTPS_PROXY", "me:p@ss:")
    assert proxy.authorization == "Basic bWU6cEBzczo="
    assert str(proxy) == "the proxy proxy:3128 (HTTPS_PROXY)"
    assert "p@ss" not in f"{proxy} {proxy!r}"
    assert parse_proxy_url("http://proxy", "proxy").address == Address("proxy", 80)
    assert parse_proxy_url("http://[fd00::1]:3128", "proxy").address == Address("fd00::1", 3128)


@pytest.mark.parametrize(
    "url",
    [
        *("socks5://me:hunter2@proxy:1080", "https://me:hunter2@proxy", "http://hunter2@p:x/"),
        *("http://me:2#hunter2@proxy:3128", "http://me:2?hunter2@proxy:3128", "http://me:2/hunter2@proxy:3128"),
    ],
)
def test_what_is_no_http_proxy_is_an_error_that_does_not_repeat_it(url: str) -> None:
    with pytest.raises(EgressError) as raised:
        find_environment_proxy("https://slack.com/", {"HTTPS_PROXY": url})
    assert str(raised.value) == "HTTPS_PROXY in the environment: expected http://HOST:PORT of a proxy"
    assert raised.value.is_permanent


def test_the_environment_may_leave_the_scheme_out() -> None:
    assert found("https://slack.com/", HTTPS_PROXY="proxy:3128") == "proxy:3128"
