"""A command that a person copies does what the channel did, holds no secret, and runs nothing that an alert says."""

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.relay.channels.requests import build_posts, quote_address
from tests.relay.channels.conftest import Providers
from tests.relay.channels.examples import SECRET, detailed, message, settings, with_text

VARIABLES = ("SLACK_TOKEN", "PAGERDUTY_ROUTING_KEY", "WEBHOOK_TOKEN", "SMTP_PASSWORD")
HOSTILE = """'; touch pwned; ' $(touch pwned) `touch pwned` "'"$PATH"'" \\' !! %s [secret]"""


async def run(command: str, folder: Path, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **dict.fromkeys(VARIABLES, SECRET), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()


@pytest.mark.parametrize("kind", ["slack", "slack_webhook", "email", "pagerduty", "webhook"])
async def test_a_copied_command_sends_the_same_again(
    kind: str, secret_file: Path, providers: Providers, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    channel = settings(providers.example(kind, secret_file))
    url = (
        await asyncio.to_thread(secret_file.read_text) if kind == "slack_webhook" else str(getattr(channel, "url", ""))
    )
    opened = channel.connect(5)
    for number, sent in enumerate((detailed(message()), with_text(HOSTILE)), 1):
        command = channel.build_curl("an-id", opened.render_payload(sent))
        assert command is not None
        assert SECRET not in command
        paths = {"SLACK_API_PATH": getattr(channel, "api_url", ""), "PAGERDUTY_PATH": getattr(channel, "url", "")}
        variables = {name: urlsplit(address or "").path.rstrip("/") for name, address in paths.items()}
        answer = await run(command, folder, SLACK_WEBHOOK_URL=url, WEBHOOK_URL=url, **variables)
        assert len(providers.arrived(kind)) == number, answer
    assert list(folder.iterdir()) == []
    assert "touch pwned" in providers.arrived(kind)[-1]
    await opened.close()


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://slack.com/api/", "https://slack.com/api"),
        ("https://gateway.example.org/a-secret/api", 'https://gateway.example.org"$SLACK_API_PATH"'),
        ("https://user:a-secret@gateway.example.org?a-secret", 'https://gateway.example.org"$SLACK_API_PATH"'),
    ],
)
def test_a_path_that_is_not_the_providers_own_may_be_a_secret_as_in_the_masked_settings(url: str, masked: str) -> None:
    assert quote_address(url, "https://slack.com/api/", "SLACK_API_PATH") == masked


def test_what_is_no_request_or_too_large_has_no_command() -> None:
    assert settings({"kind": "log"}).build_curl("an-id", "{}") is None
    assert build_posts("http://x", [], "x" * 200_000) is None
