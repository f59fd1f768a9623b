"""A channel of another kind that speaks HTTP: Microsoft Teams, by the URL of a workflow; and its provider's double.

It is complete: the two classes and one member of the union in `services.relay.channels.registry` are all that it takes.
The battery runs on it as on the relay's own kinds.
"""

import json
import re
from typing import ClassVar, Final, Literal

from services.relay.channels.port import MessageRate
from services.relay.channels.posting import PostingChannel, SecretUrlSettings
from services.relay.http import encode_json
from services.relay.model import Message
from services.relay.text.chat import build_text

MAX_BYTES: Final = 28_000  # https://learn.microsoft.com/en-us/microsoftteams/limits-specifications-teams
_MAX_BODY: Final = 25_000
_REPEAT: Final = "This may be a repeat: the reply to an earlier attempt was lost."


class TeamsSettings(SecretUrlSettings):
    """A channel of Teams, by the secret URL of its workflow."""

    provider_rate: ClassVar[MessageRate | None] = MessageRate(1.0)
    digest_size: ClassVar[int] = 50

    kind: Literal["teams"]

    def connect(self, timeout: float) -> "TeamsChannel":
        return TeamsChannel(self, self.url_file, timeout)


class TeamsChannel(PostingChannel):
    """Posts an Adaptive Card; Teams answers 202 and names no message, so nothing is edited or searched for."""

    provider: ClassVar[str] = "Teams"

    def build_payload(self, message: Message, *, may_be_a_repeat: bool) -> str:
        """A card of texts, which are Markdown: https://adaptivecards.io/explorer/TextBlock.html."""
        text = build_text(message, measure=_measure, limit=_MAX_BODY, is_markdown=True, escapes_title=True)
        texts = [text.title, *([_REPEAT] if may_be_a_repeat else []), text.body]
        body = [{"type": "TextBlock", "text": each, "wrap": True} for each in texts if each]
        body[0] |= {"weight": "bolder", "size": "large"}
        card = {"type": "AdaptiveCard", "version": "1.4", "body": body}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return encode_json({"type": "message", "attachments": [attachment]})


def _measure(text: str) -> int:
    return len(encode_json(text).encode())


def refuses(body: bytes) -> bool:
    """Whether Teams would refuse what is posted."""
    try:
        (attachment,) = json.loads(body)["attachments"]
    except (ValueError, KeyError):
        return True
    return len(body) > MAX_BYTES or not all(block["text"] for block in attachment["content"]["body"])


def find_live(payload: str) -> list[str]:
    """What of a payload Teams would take for a mention, or for a link that the relay does not make.

    Texts mention nobody, only what stands in `msteams.entities`.
    https://learn.microsoft.com/en-us/microsoftteams/platform/task-modules-and-cards/cards/cards-format
    """
    content = json.loads(payload)["attachments"][0]["content"]
    text = re.sub(r"\\.", "", "\n".join(block["text"] for block in content["body"]))
    links = re.findall(r"<[a-z/!@][^>]*>|\]\(https?://evil[^)]*|\]\((?!https?:)", text)
    return [*map(str, content.get("msteams", {}).get("entities", ())), *links]
