"""What people see of a channel's settings holds no secret, whatever the kind."""

from pathlib import Path
from typing import Any

import pytest

from services.relay.channel_health.pages import format_rate, list_default_keys, mask_settings, mask_url
from services.relay.channels.port import ChannelSettings
from shared.config.settings import Address
from tests.relay.channels.examples import KINDS, SECRET, example, settings

SECRETS = {
    "slack": {"api_url": f"https://slack.example.org/{SECRET}/api/"},
    "pagerduty": {"url": f"https://pd.example.org/v2/enqueue?key={SECRET}"},
    "webhook": {"url": f"https://hooks.example.org:8443/services/{SECRET}#{SECRET}"},
}
"""Addresses that hold one themselves."""


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_secret_is_shown_and_every_other_key_is(kind: str, tmp_path: Path) -> None:
    secret = tmp_path / "a-secret-file"
    values = {**example(kind, secret, Address("127.0.0.1", 9)), **SECRETS.get(kind, {}), "rate": "30/m"}
    if kind != "log":
        values["proxy"] = "http://proxy.example.org:3128"
    own = settings(values)
    masked = mask_settings(own)
    assert SECRET not in str(masked)
    assert (masked["kind"], masked["rate"]) == (kind.partition("_")[0], "30/m")
    assert {key for key in values if key not in masked} == set()
    for key, value in values.items():
        if value == secret:
            assert masked[key] == str(secret)
    assert list_default_keys(own).isdisjoint(values)
    assert list_default_keys(own).isdisjoint(list(masked)[: len(values)])


def test_the_addresses_of_providers_are_shown_whole(tmp_path: Path) -> None:
    own = settings(example("slack", tmp_path / "token", Address("127.0.0.1", 9)))
    assert mask_settings(own)["api_url"] == "http://127.0.0.1:9/[secret]"
    usual = settings({"kind": "slack", "channel": "#ops", "token_file": tmp_path / "token"})
    assert mask_settings(usual)["api_url"] == "https://slack.com/api/"
    assert mask_url("https://anna:pw@host/") == "https://host"
    assert [format_rate(rate) for rate in (1.0, 0.75, 500 / 3600, 2.0)] == ["1/s", "45/m", "500/h", "2/s"]


def test_what_is_not_known_is_not_shown() -> None:
    class Unknown(ChannelSettings):
        token: Any = None

        def connect(self, timeout: float) -> Any:
            raise NotImplementedError

    assert mask_settings(Unknown(token=object()))["token"] == "[secret]"
