"""A press as Slack sends it: https://docs.slack.dev/reference/interaction-payloads/block_actions-payload."""

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from services.relay.text import clean_line, truncate
from shared.http.untrusted_json import decode_json

_MAX_NAME: Final = 80
"""Characters of a person's name."""


class Action(StrEnum):
    """What a button does: its `action_id`."""

    ACKNOWLEDGE = "acknowledge"
    UNACKNOWLEDGE = "unacknowledge"
    SILENCE = "silence"


@dataclass(frozen=True, slots=True)
class Press:
    """One press of one of the relay's buttons."""

    id: str
    """The same for one press, however often it arrives."""
    action: Action
    incident_id: str
    episode: int | None
    """The one that the message with the button shows; None for a button of an older relay."""
    user_id: str
    who: str
    """The person's name in Slack."""
    user_team: str
    team: str
    """The workspace's, which a person of a partner does not belong to."""
    channel: str
    """Slack's ID."""
    ts: str

    @property
    def peer(self) -> str:
        """The person by Slack's ID, as `allow_users` has it: for the audit and the log, since names are not unique."""
        return f"slack:{self.user_id}"


class _User(msgspec.Struct, gc=False):
    id: str
    team_id: str = ""
    username: str = ""


class _Team(msgspec.Struct, gc=False):
    id: str


class _Container(msgspec.Struct, gc=False):
    channel_id: str = ""
    message_ts: str = ""


class _Action(msgspec.Struct, gc=False):
    action_id: str
    value: str = ""
    action_ts: str = ""


class _Payload(msgspec.Struct, gc=False):
    type: str
    user: _User | None = None
    team: _Team | None = None
    container: _Container | None = None
    actions: list[_Action] = []


_PAYLOAD: Final = msgspec.json.Decoder(_Payload)


def parse_press(payload: bytes | msgspec.Raw) -> Press | None:
    """The press of one of the relay's buttons; None for all else, such as a button with a link.

    Raises:
        UntrustedJsonError: it is no payload of Slack.
    """
    document = decode_json(_PAYLOAD, payload)
    found = [each for each in document.actions if each.action_id in set(Action)]
    if document.type != "block_actions" or not found or document.user is None or document.container is None:
        return None
    action, user, container = found[0], document.user, document.container
    incident_id, _, episode = action.value.partition("/")
    parts = (user.id, container.channel_id, container.message_ts, action.action_id, action.value, action.action_ts)
    return Press(
        id=hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32],
        action=Action(action.action_id),
        incident_id=incident_id,
        episode=int(episode) if re.fullmatch("[1-9][0-9]{0,8}", episode) else None,
        user_id=user.id,
        who=truncate(clean_line(user.username or user.id), _MAX_NAME),
        user_team=user.team_id,
        team=document.team.id if document.team else "",
        channel=container.channel_id,
        ts=container.message_ts,
    )
