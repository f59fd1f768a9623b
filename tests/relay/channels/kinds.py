"""The kinds of channels, by what is true of their settings, and one attempt that fails."""

from email import message_from_string, policy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from services.relay.channels.port import ChannelSettings, SendError
from services.relay.channels.posting import HttpChannelSettings
from services.relay.model import Message
from shared.config.settings import Address
from tests.relay.channels.examples import KINDS, example, settings
from tests.relay.channels.recording_attempt import Recorded, refuse


def _has_url_in_file(kind: str, settings: type[ChannelSettings]) -> bool:
    """Whether the URL is the secret."""
    fields = settings.model_fields.items()
    return kind == "slack_webhook" or any(name.endswith("url_file") and each.is_required() for name, each in fields)


HTTP_KINDS = [kind for kind, each in KINDS.items() if issubclass(each, HttpChannelSettings)]
"""Of which a status can be asked."""
REMOTE_KINDS = [kind for kind in KINDS if kind != "log"]
"""Which somebody else provides, who asks for a secret."""
URL_IN_FILE = [kind for kind in HTTP_KINDS if _has_url_in_file(kind, KINDS[kind])]
STATUS_DECIDES = {kind for kind in HTTP_KINDS if getattr(KINDS[kind], "status_decides", False)}
"""To which a status of 2xx says everything."""
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))
EVERY_KIND_WITH_DIGESTS = pytest.mark.parametrize("kind", [kind for kind, each in KINDS.items() if each.digest_size])
EVERY_REMOTE_KIND = pytest.mark.parametrize("kind", REMOTE_KINDS)
EVERY_HTTP_KIND = pytest.mark.parametrize("kind", HTTP_KINDS)
EVERY_KIND_WITH_A_URL = pytest.mark.parametrize("kind", [kind for kind in HTTP_KINDS if kind not in URL_IN_FILE])
"""Whose URL is in the configuration."""
EVERY_KIND_WITH_A_SECRET_FILE = pytest.mark.parametrize(
    "kind", [kind for kind in REMOTE_KINDS if kind not in URL_IN_FILE]
)
EVERY_KIND_THAT_READS_ANSWERS = pytest.mark.parametrize("kind", sorted({*REMOTE_KINDS} - STATUS_DECIDES))
EVERY_HTTP_KIND_THAT_READS_ANSWERS = pytest.mark.parametrize("kind", sorted({*HTTP_KINDS} - STATUS_DECIDES))


def render_text(kind: str, of: Message) -> str:
    """What the channel would send, where Python and a person read the same."""
    with TemporaryDirectory() as folder:
        channel = settings(example(kind, Path(folder) / "secret", Address("127.0.0.1", 9))).connect(5)
        payload = channel.render_payload(of)
    if kind != "email":
        return payload
    mail = message_from_string(payload, policy=policy.default)
    parts = [mail.get_body((part,)) for part in ("plain", "html")]
    return "\n".join(str(part and part.get_content()).replace("\r\n", "\n") for part in parts)


async def failure(
    kind: str, secret_file: Path, provider: Address, timeout: float = 5, attempt: Recorded | None = None
) -> SendError:
    """The error of one send to `provider`; the channel is closed again."""
    channel = settings(example(kind, secret_file, provider)).connect(timeout)
    try:
        return await refuse(channel, attempt)
    finally:
        await channel.close()


def unused_address() -> Address:
    return Address("127.0.0.1", 1)  # the system gives it to nobody who asks for a free port
