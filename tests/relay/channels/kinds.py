"""The kinds of channels, by what is true of them, and one attempt that fails."""

import socket
from pathlib import Path

import pytest

from services.relay.channels.port import SendError
from shared.config.settings import Address
from tests.relay.channels.examples import KINDS, example, kind_of, message, settings
from tests.relay.channels.recording_attempt import Recorded


def having(*fields: str) -> list[str]:
    return [kind_of(kind) for kind in KINDS if set(fields) & kind.model_fields.keys()]


URL_IN_FILE = ("slack_webhook", "apprise")
"""Whose URL is the secret, in a file."""
HTTP_KINDS = [*having("url", "api_url"), *URL_IN_FILE]  # those of which a status can be asked
REMOTE_KINDS = [*HTTP_KINDS, "email"]  # those that somebody else provides, who asks for a secret
EVERY_KIND = pytest.mark.parametrize("kind", [*map(kind_of, KINDS), "slack_webhook"])
EVERY_REMOTE_KIND = pytest.mark.parametrize("kind", REMOTE_KINDS)
EVERY_HTTP_KIND = pytest.mark.parametrize("kind", HTTP_KINDS)
EVERY_KIND_WITH_A_URL = pytest.mark.parametrize("kind", [kind for kind in HTTP_KINDS if kind not in URL_IN_FILE])
"""Whose URL is in the configuration."""
STATUS_DECIDES = {"webhook", "apprise"}
"""To which a status of 2xx says everything, as to Apprise's `json://`."""
EVERY_KIND_THAT_READS_ANSWERS = pytest.mark.parametrize("kind", sorted({*REMOTE_KINDS} - STATUS_DECIDES))
EVERY_HTTP_KIND_THAT_READS_ANSWERS = pytest.mark.parametrize("kind", sorted({*HTTP_KINDS} - STATUS_DECIDES))


async def failure(
    kind: str, secret_file: Path, provider: Address, timeout: float = 5, attempt: Recorded | None = None
) -> SendError:
    """The error of one send to `provider`; the channel is closed again."""
    channel = settings(example(kind, secret_file, provider)).connect(timeout)
    try:
        with pytest.raises(SendError) as raised:
            await channel.send(attempt or Recorded(message()))
    finally:
        await channel.close()
    return raised.value


def unused_address() -> Address:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", free.getsockname()[1])
