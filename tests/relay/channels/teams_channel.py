"""A channel of another kind that speaks HTTP: Microsoft Teams, by the URL of a workflow; and its provider's double.

It is complete: the two classes and one member of the union in `services.relay.channels.registry` are all that it takes.
The battery runs on it as on the relay's own kinds.
"""

import json
import re
from typing import Any, ClassVar, Final, Literal

from services.relay.channels.port import MessageRate
from services.relay.channels.posting import PostingChannel, SecretUrlSettings
from services.relay.model import Message
from services.relay.text import AlertCard, AlertTable, build_view, fit, truncate

MAX_BYTES: Final = 28_000  # https://learn.microsoft.com/en-us/microsoftteams/limits-specifications-teams
_MAX_TEXT: Final = 1_000
_ACTIONS: Final = 6
_REPEAT: Final = "This may be a repeat: the reply to an earlier attempt was lost."


class TeamsSettings(SecretUrlSettings):
    """A channel of Teams, by the secret URL of its workflow."""

    provider_rate: ClassVar[MessageRate | None] = MessageRate(1.0)

    kind: Literal["teams"]

    def connect(self, timeout: float) -> "TeamsChannel":
        return TeamsChannel(self, self.url_file, timeout)


class TeamsChannel(PostingChannel):
    """Posts an Adaptive Card; Teams answers 202 and names no message, so nothing is edited or searched for."""

    provider: ClassVar[str] = "Teams"

    def build_payload(self, message: Message, *, may_be_a_repeat: bool) -> str:
        view = build_view(message, max_cards=10, max_tables=2, max_rows=20)
        facts = " · ".join(filter(None, (view.headline, view.counts, view.severity)))
        repeat = _REPEAT if may_be_a_repeat else ""
        contacts = "\n".join(f"{role}: {address}" for role, address in view.contacts.items())
        links = [*view.incident_links, *(link for part in view.parts for link in part.links), *view.group_links]
        parts = [
            [_build_text(view.subject) | {"weight": "bolder", "size": "large"}],
            *([_build_text(text)] for text in (facts, repeat, view.remark, contacts, view.omission) if text),
            *([_build_text(_write(part)), _build_text(_write(part)[:100])] for part in view.parts),
        ]
        body = [form for form in fit(parts, (MAX_BYTES // 2, lambda form: len(json.dumps(form)))) if form is not None]
        actions = [{"type": "Action.OpenUrl", "title": link.text, "url": link.url} for link in links[:_ACTIONS]]
        card = {"type": "AdaptiveCard", "version": "1.4", "body": body, "actions": actions}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return json.dumps({"type": "message", "attachments": [attachment]})


def _write(part: AlertCard | AlertTable) -> str:
    if isinstance(part, AlertTable):
        return "\n".join([part.caption, *(" · ".join(row) for row in part.rows), part.more])
    return "\n".join(filter(None, (part.summary, part.period, part.description)))


def _build_text(text: str) -> dict[str, Any]:
    """A block, whose text is Markdown: https://adaptivecards.io/explorer/TextBlock.html."""
    escaped = re.sub(r"([\\`*_\[\]<>@])", r"\\\1", truncate(text, _MAX_TEXT))
    return {"type": "TextBlock", "text": escaped, "wrap": True}


def refuses(body: bytes) -> bool:
    """Whether Teams would refuse what is posted."""
    try:
        (attachment,) = json.loads(body)["attachments"]
    except (ValueError, KeyError):
        return True
    return len(body) > MAX_BYTES or not all(block["text"] for block in attachment["content"]["body"])
