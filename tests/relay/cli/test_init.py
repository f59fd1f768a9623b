"""`keypulse-relay init`: what it prints is a configuration that a person fills in."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from services.relay.__main__ import main
from services.relay.config import RelaySettings
from shared.config.settings import load_settings


def init(*options: str) -> str:
    result = CliRunner().invoke(main, ["init", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def load(text: str, folder: Path) -> RelaySettings:
    (folder / "relay.yml").write_text(text)
    return load_settings(RelaySettings, folder / "relay.yml")


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ((), ["log"]),
        (("--slack", "#ops"), ["slack"]),
        (("--slack", "webhook"), ["slack"]),
        (("--email", "a@company.net", "--email", "Anna <b@company.net>"), ["email"]),
        (("--pagerduty",), ["pagerduty"]),
        (("--webhook", "https://tickets.company.net/hook?a=b"), ["webhook"]),
        (("--slack", "C0123456789", "--email", "a@company.net", "--pagerduty"), ["slack", "email", "pagerduty"]),
    ],
)
def test_it_is_valid_has_what_was_asked_for_and_explains_it(
    options: tuple[str, ...], kinds: list[str], tmp_path: Path
) -> None:
    text = init(*options)
    settings = load(text, tmp_path)
    assert [channel.kind for channel in settings.channels.values()] == kinds
    assert settings.default_channels == tuple(settings.channels)
    assert [(each.name, each.channels) for each in settings.watchdogs] == [("Watchdog", tuple(settings.channels))]
    assert settings.environment == "production"
    assert text.count("#") > 10


def test_the_addresses_of_alertmanagers_and_prometheus_are_settings(tmp_path: Path) -> None:
    urls = ("http://alertmanager-0:9093", "http://alertmanager-1:9093")
    options = [option for url in urls for option in ("--alertmanager", url)]
    settings = load(init("--slack", "webhook", *options, "--prometheus", "https://prometheus.company.net"), tmp_path)
    assert settings.alertmanager.urls == urls
    assert settings.messages.prometheus_url == "https://prometheus.company.net"
    result = CliRunner().invoke(main, ["init", "--alertmanager", "alertmanager:9093"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("options: alertmanager.urls.0: expected a URL")


def test_what_is_commented_out_is_valid_too(tmp_path: Path) -> None:
    lines = init("--slack", "#ops").splitlines()
    keys = ("routes:", "links:", "alertmanager:", "contacts:", "  - {", "  runbook:", "  dashboard:")
    uncommented = [line.removeprefix("# ") if line.removeprefix("# ").startswith(keys) else line for line in lines]
    settings = load("\n".join(uncommented), tmp_path)
    assert settings.routes[0].channels == ("slack",)
    assert settings.links.runbook is not None
    assert settings.alertmanager.urls
    assert settings.contacts


def test_an_option_that_fits_no_channel_is_one_line_and_2() -> None:
    result = CliRunner().invoke(main, ["init", "--slack", "ops"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith('options: channels.slack.channel: expected "#name"')
    result = CliRunner().invoke(main, ["init", "--webhook", "http://tickets.company.net/hook"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(
        "options: channels.webhook.url: expected https://, because http:// would send alerts"
    )
    assert "; or set `allow_remote_insecure: true`" in result.stderr
