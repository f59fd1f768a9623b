"""What to do about a channel that could not send, where its checks say nothing of the error."""

from pathlib import Path
from typing import Any

import pytest

from ops.demo.stand_ins.app import run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.channel_health.checks import find_advice, send_test_message
from services.relay.config import RelaySettings


@pytest.mark.parametrize(
    "fault",
    [
        None,
        {"kind": FaultKind.HANG, "method": "conversations.list"},
        {"kind": FaultKind.RATE_LIMIT, "method": "conversations.list", "seconds": 60},
        {"kind": FaultKind.STATUS, "method": "auth.test", "status": 500},
    ],
)
async def test_a_bot_that_is_no_member_is_to_be_invited_whatever_its_checks_find(
    fault: dict[str, Any] | None, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("xoxb-test")
    async with run_stand_ins() as providers:
        providers.slack.channels["#security-critical"].is_member = False
        providers.slack.scopes.add("chat:write.public")  # with it, the check expects no member
        refusal = {"kind": FaultKind.ERROR, "method": "chat.postMessage", "error": "not_in_channel"}
        for each in (refusal, *([fault] if fault else [])):
            providers.faults.add(ProviderFault(provider=Provider.SLACK, **each))
        slack = {
            "kind": "slack",
            "channel": "#security-critical",
            "token_file": tmp_path / "secret",
            "api_url": providers.slack_api_url,
        }
        settings = RelaySettings(
            database=f"sqlite:///{tmp_path}/relay.db",
            environment="staging",
            auth={"bearer_token_file": tmp_path / "secret"},
            channels={"one": slack},
            default_channels=["one"],
        )
        error = (await send_test_message(settings, "one")).error
        assert error is not None
        short = settings.delivery.model_copy(update={"timeout": 0.5})  # for what hangs
        advice = await find_advice(settings.model_copy(update={"delivery": short}), "one", error)
    assert advice == "invite the bot: type in #security-critical: /invite @NAME-OF-THE-BOT"
