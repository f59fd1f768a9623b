"""What arrived at the stand-in providers, read before they forget it: the keys of messages, and the pages."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ops.demo.stand_ins.app import StandIns
from ops.demo.stand_ins.mail_server import ReceivedMail
from tests.soak.alerts import NAME

_RESOLVED_PART: Final = "] Resolved</strong>"
"""Above the alerts that are over, in the mails of Alertmanager's own template; they come last."""


class Told(NamedTuple):
    """What somebody was told of an alert."""

    at: float
    """Unix seconds by the right clock."""
    text: str
    is_firing: bool = True
    """Otherwise it is over."""


@dataclass
class Page:
    """One incident of PagerDuty's; times by the monotonic clock."""

    key: str
    name: str
    """Of the alert; empty for one of another rule."""
    opened: float
    resolved: float | None = None


@dataclass
class Received:
    """Grows with each `read`; a few bytes for each message."""

    keys: set[str] = field(default_factory=set)
    """The `ts`, Message-ID or dedup_key by which a receipt names a message."""
    pages: list[Page] = field(default_factory=list)
    direct: list[Told] = field(default_factory=list)
    """The mails that came around the relay, from Alertmanager itself."""
    forgotten: int = 0
    """How often a stand-in had dropped messages before they were read."""
    _last: dict[str, Any] = field(default_factory=dict)
    _open: dict[str, Page] = field(default_factory=dict)

    def read(self, providers: StandIns) -> None:
        """Takes what came since the last time."""
        for name, channel in providers.slack.channels.items():
            self.keys.update(message.ts for message in self._take_new(name, channel.messages))
        for mail in self._take_new("mail", providers.mailbox.mails):
            self.keys.add(mail.message_id)
            if mail.sender.startswith("alertmanager@"):
                self.direct += read_mail(mail)
        for event in self._take_new("pagerduty", providers.pagerduty.events):
            key, action, now = event["dedup_key"], event["event_action"], time.monotonic()
            self.keys.add(key)
            if action == "trigger" and key not in self._open:
                found = NAME.search(event["payload"]["summary"])
                self._open[key] = Page(key, found[0] if found else "", now)
                self.pages.append(self._open[key])
            elif action == "resolve" and key in self._open:
                self._open.pop(key).resolved = now

    @property
    def open_pages(self) -> list[Page]:
        return list(self._open.values())

    def _take_new(self, source: str, stored: Any) -> Sequence[Any]:
        """The messages after the last one that was taken."""
        messages, last, new = list(stored), self._last.get(source), []
        for message in reversed(messages):
            if message is last:
                break
            new.append(message)
        else:
            self.forgotten += last is not None
        if messages:
            self._last[source] = messages[-1]
        return new[::-1]


def read_mail(mail: ReceivedMail) -> list[Told]:
    """What a mail of Alertmanager's says is firing, and what is over."""
    firing, _, resolved = mail.html.partition(_RESOLVED_PART)
    is_firing = "[RESOLVED]" not in mail.subject
    return [Told(mail.at, mail.subject + firing, is_firing), Told(mail.at, resolved, is_firing=False)]
