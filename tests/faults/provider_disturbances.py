"""Reads what the stand-ins received, for the oracle, and breaks them at random."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.provider_faults import ProviderFault, ProviderFaults
from ops.demo.stand_ins.slack.workspace import SlackMessage
from tests.faults.incidents import read_alerts, read_group
from tests.faults.relay import CHANNELS
from tests.faults.stored_deliveries import Update
from tests.relay.delivery_oracle.evidence import Message

MAX_STORED = 500
"""Of which kind of message the stand-ins forget the oldest."""
MAY_BE_A_REPEAT = "This may be a repeat"

PASSING = (
    {"provider": "slack", "kind": "status", "status": 503},
    {"provider": "slack", "kind": "error", "error": "internal_error"},
    {"provider": "slack", "kind": "rate_limit", "seconds": 1},
    {"provider": "slack", "kind": "hang", "seconds": 1.5},
    {"provider": "slack", "kind": "lost_answer"},
    {"provider": "slack", "kind": "lost_answer", "seconds": 1.5},
    {"provider": "slack", "kind": "error", "error": "token_revoked"},
    {"provider": "pagerduty", "kind": "status", "status": 500},
    {"provider": "pagerduty", "kind": "rate_limit", "seconds": 1},
    {"provider": "pagerduty", "kind": "hang", "seconds": 1.5},
    {"provider": "pagerduty", "kind": "lost_answer"},
    {"provider": "pagerduty", "kind": "lost_answer", "seconds": 1.5},
    {"provider": "smtp", "kind": "status", "status": 451},
    {"provider": "smtp", "kind": "rate_limit"},
    {"provider": "smtp", "kind": "hang", "seconds": 1.5},
    {"provider": "smtp", "kind": "lost_answer"},
    {"provider": "smtp", "kind": "lost_answer", "seconds": 1.5},
    {"provider": "smtp", "kind": "refuse_recipient", "recipient": CHANNELS["email"].readers[0], "status": 450},
    {"provider": "smtp", "kind": "refuse_recipient", "recipient": CHANNELS["email"].readers[1], "status": 450},
)
"""After these the same message may be sent again."""
UNANSWERED = (
    {"provider": "slack", "kind": "lost_answer", "method": "chat.postMessage"},
    {"provider": "slack", "kind": "lost_answer", "method": "chat.update"},
    {"provider": "slack", "kind": "error", "error": "internal_error", "method": "chat.postMessage"},
    {"provider": "slack", "kind": "error", "error": "internal_error", "method": "chat.update"},
    {"provider": "slack", "kind": "hang", "seconds": 1.5, "method": "chat.postMessage"},
    {"provider": "slack", "kind": "lost_answer", "seconds": 1.5, "method": "chat.postMessage"},
    {"provider": "slack", "kind": "status", "status": 503, "method": "conversations.history"},
    {"provider": "slack", "kind": "error", "error": "token_revoked", "method": "conversations.history"},
)
"""After these nobody knows whether the message arrived, or where it is."""
DEADLY = (
    {"provider": "slack", "kind": "error", "error": "invalid_blocks"},
    {"provider": "pagerduty", "kind": "status", "status": 400},
    {"provider": "smtp", "kind": "status", "status": 554},
)
"""These kill the message that they meet."""


async def disturb(faults: ProviderFaults, random: Random, *, every: float = 0.3) -> None:
    """Breaks and heals the providers until it is cancelled; leaves them as they are then.

    Args:
        faults: of the stand-ins.
        random: chooses what and when.
        every: seconds between two changes, on average.
    """
    while True:
        await asyncio.sleep(random.uniform(0, 2 * every))
        if random.random() < 0.15:
            faults.clear()
        else:
            is_deadly = random.random() < 0.03
            fault = random.choice(DEADLY if is_deadly else PASSING)
            count = random.randint(1, 4) if is_deadly or random.random() < 0.8 else random.randint(5, 12)
            faults.add(ProviderFault.model_validate({**fault, "count": count}))


async def lose_answers(faults: ProviderFaults, random: Random, *, every: float = 0.3) -> None:
    """Loses Slack's answers to posts and edits, up to twelve in a row, until it is cancelled."""
    while True:
        await asyncio.sleep(random.uniform(0, 2 * every))
        if random.random() < 0.2:
            faults.clear()
        else:
            fault = {**random.choice(UNANSWERED), "count": random.randint(1, 12)}
            faults.add(ProviderFault.model_validate(fault))


def read_messages(providers: StandIns, updates: Sequence[Update]) -> list[Message]:
    """Every message that arrived, those of each reader in the order of their arrival; an update is one, too."""
    found = [*_posts(providers, updates), *_mails(providers), *_pages(providers)]
    forgotten = [
        reader for reader in (providers.mailbox.mails, providers.pagerduty.events) if len(reader) == MAX_STORED
    ]
    assert not forgotten, "the stand-ins have forgotten the first messages; play less"
    return found


def _posts(providers: StandIns, updates: Sequence[Update]) -> Iterator[Message]:
    for name, channel in providers.slack.channels.items():
        assert len(channel.messages) < MAX_STORED, "the stand-in has forgotten the first messages; play less"
        arrived = []
        for post in channel.messages:
            text, blocks = post.before_edits or (post.text, post.blocks)
            arrived.append((post.at, _key(post), text + json.dumps(blocks)))
            arrived += [(each.at, each.delivery_id, each.text) for each in updates if each.ts == post.ts]
        for _, key, text in sorted(arrived):
            yield replace(_message(_channel(name), name, key, text), is_marked_repeat=MAY_BE_A_REPEAT in text)


def _key(post: SlackMessage) -> str:
    return str((post.metadata or {}).get("event_payload", {}).get("delivery_id", ""))


def read_edited(providers: StandIns, updates: Sequence[Update]) -> list[Message]:
    """What each message of Slack shows now, edits included, under the key of each delivery that it is of."""
    return [
        _message(_channel(name), name, key, post.text)
        for name, channel in providers.slack.channels.items()
        for post in channel.messages
        for key in (_key(post), *(each.delivery_id for each in updates if each.ts == post.ts))
    ]


def read_roots(providers: StandIns) -> list[Message]:
    """What each message of Slack shows now that is in no thread."""
    return [
        _message(_channel(name), name, _key(post), post.text)
        for name, channel in providers.slack.channels.items()
        for post in channel.messages
        if post.thread_ts is None and not post.is_deleted
    ]


def _mails(providers: StandIns) -> Iterator[Message]:
    for mail in providers.mailbox.mails:
        for recipient in mail.to:
            yield _message(_channel(recipient), recipient, mail.message_id, mail.text)


def _pages(providers: StandIns) -> Iterator[Message]:
    for event in providers.pagerduty.events:
        if not event["payload"]:
            continue  # an acknowledgement, or the resolve of an earlier episode, shows no state; see `people`
        text = json.dumps(event["payload"])
        yield _message("pagerduty", "pagerduty", event["dedup_key"], text, event["event_action"])


def _message(channel: str, reader: str, key: str, text: str, action: str = "") -> Message:
    alerts = read_alerts(text)
    return Message(channel, reader, key, read_group(alerts), alerts, action)


def _channel(reader: str) -> str:
    return next((channel for channel, traits in CHANNELS.items() if reader in traits.readers), reader)
