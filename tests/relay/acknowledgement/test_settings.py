"""The settings of buttons are checked together with what they need; `doctor` tries them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ops.demo.stand_ins.app import StandIns
from services.relay.config import RelaySettings
from services.relay.doctor import open_checks
from shared.check import CheckError
from tests.relay.acknowledgement.pressed_relay import ANNA, build_settings

ALLOWED = {"allow_users": [ANNA], "allow_groups": ["S0000000002"]}
URLS = {"urls": ["http://127.0.0.1:9"]}


async def test_what_lacks_something_is_named(tmp_path: Path, stand_ins: StandIns) -> None:
    without_token = {"interactive": {"app_token_file": None, "silence": ALLOWED}, "alertmanager": URLS}
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        (without_token, "expected `app_token_file`"),
        ({"interactive": {"silence": ALLOWED}}, "expected `alertmanager.urls`"),
        ({"channels": {"slack": {"kind": "log"}}}, "expected a channel of kind slack with `token_file`"),
        ({"interactive": {"silence": {"allow_users": ["anna"]}}}, "silence.allow_users.0"),
        ({"interactive": {"silence": {"allow_groups": ["@oncall"]}}}, "silence.allow_groups.0"),
        ({"interactive": {"silence": {**ALLOWED, "max": "8d"}}}, "silence.max"),
        ({"interactive": {"api_url": "http://slack.example.org/api/"}}, "interactive.api_url"),
    )
    for keys, expected in wrong:
        with pytest.raises(ValidationError, match=expected):
            build_settings(tmp_path, stand_ins, **keys)


async def run_checks(settings: RelaySettings) -> dict[str, str]:
    results = {}
    async with open_checks(settings) as checks:
        for check in checks:
            if check.name.startswith("interactive"):
                try:
                    results[check.name] = await check.run()
                except CheckError as error:
                    results[check.name] = f"✗ {error}"
    return results


async def test_doctor_tries_the_app_token_and_the_scopes_of_silences(tmp_path: Path, stand_ins: StandIns) -> None:
    settings = build_settings(tmp_path, stand_ins, interactive={"silence": ALLOWED}, alertmanager=URLS)
    assert await run_checks(settings) == {
        "interactive app token": "the app-level token opens connections",
        "interactive silence by channels.slack": "the bot has users:read and usergroups:read",
    }
    assert stand_ins.socket_mode.connections == []
    stand_ins.slack.app_scopes.clear()
    stand_ins.slack.scopes.discard("usergroups:read")
    assert list((await run_checks(settings)).values()) == [
        (
            "✗ Slack answered missing_scope; the token needs connections:write; "
            "give the app-level token the scope connections:write"
        ),
        "✗ the bot lacks usergroups:read; add usergroups:read to the app's bot scopes, and install the app again",
    ]
    stand_ins.slack.scopes.discard("users:read")
    (_, scopes) = (await run_checks(settings)).values()
    assert scopes == (
        "✗ the bot lacks users:read and usergroups:read; "
        "add users:read and usergroups:read to the app's bot scopes, and install the app again"
    )
    (tmp_path / "app").write_text("xoxb-test")
    (token, _) = (await run_checks(settings)).values()
    assert token == (
        "✗ Slack answered not_allowed_token_type: it is a token of another kind; "
        "copy the app-level token (xapp-…) into `app_token_file`"
    )
