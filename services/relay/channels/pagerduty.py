"""PagerDuty, through the Events API v2: a message goes in, the answer's dedup_key comes out.

The dedup_key is Alertmanager's own, so an Alertmanager that pages with the same routing key opens no second incident,
and an event that is sent again, because its answer was lost, changes nothing.
Where a webhook names its `source`, that goes into the key as well: the groups of independent Alertmanagers, which often
have the same groupKey, are then incidents of their own.
https://developer.pagerduty.com/docs/send-alert-event

Receivers are no part of the key, so the incidents of two receivers with one groupKey are one there: while one of them
needs it, the end of the other resolves nothing.

PagerDuty drops a resolve where nothing is open. So an incident that was over before anybody was told is triggered and
then resolved, as two events; `page_resolved: false` sends the resolve alone, and nobody is called for it.

An event that PagerDuty calls invalid is the message's own trouble, unless PagerDuty refuses the routing key by itself.
"""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, NamedTuple

from services.relay.channels import wording
from services.relay.channels.channel import Attempt, ChannelSettings, Progress, Reason, Receipt, Scope, SendError
from services.relay.channels.exchange import MASK, Exchange, exchange, made, secret, told
from services.relay.channels.rate import PerSecond
from services.relay.channels.web_api import ProviderUrl, Session, as_json, reached, refusal, words
from services.relay.model import Alert, Event, Message
from shared.secret_file import SecretFile
from shared.settings import SecretPath

Action = Literal["trigger", "resolve"]

SUMMARY = 1_024
LINKS = 20
DETAILS = 400_000  # bytes of the 512 KB that an event may have
_TEXT = 2_000
_LABEL = 500
_LABELS = 64
_LEFT_OPEN = "left open: another incident with this key is open"
_TRIGGERED: Progress = {"triggered": "yes"}
_NOTHING: Final = {"event_action": "resolve", "dedup_key": "keypulse asks whether its routing key is right"}
"""No incident has such a key, and PagerDuty drops a resolve where nothing is open."""


class PagerDutySettings(ChannelSettings):
    """A service of PagerDuty, by the routing key of its Events API v2 integration."""

    # For each integration key: https://community.pagerduty.com/forum/t/monitoring-api-rate-limiting/3318
    usual_rate: ClassVar[PerSecond | None] = PerSecond(120 / 60)

    kind: Literal["pagerduty"]
    routing_key_file: SecretPath
    url: ProviderUrl = "https://events.pagerduty.com/v2/enqueue"
    page_resolved: bool = True
    """Whether somebody is called for an incident that is over before they could be."""

    def shared_place(self) -> Hashable:
        """A service: the key of one of its incidents is the same for every receiver."""
        return self.url, self.routing_key_file

    def connect(self, timeout: float) -> "PagerDutyChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return PagerDutyChannel(self, timeout)


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str


class PagerDutyChannel:
    """Sends events to one service of PagerDuty."""

    def __init__(self, settings: PagerDutySettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._timeout = timeout
        self._clock = clock
        self._routing_key = SecretFile(settings.routing_key_file)
        self._session = Session("PagerDuty")

    async def send(self, attempt: Attempt) -> Receipt:
        """Triggers or resolves the incident; the receipt holds its `dedup_key` and PagerDuty's `status`."""
        actions = self._events(attempt.message, attempt.progress)
        receipt: Receipt = {"dedup_key": _dedup_key(attempt.message.event), "status": _LEFT_OPEN}
        async with exchange(attempt, "PagerDuty", self._timeout) as talk:
            for number, action in enumerate(actions):
                if number:
                    await attempt.keep(_TRIGGERED)
                receipt = await self._tell(talk, attempt.message, action)
        return receipt

    def payload(self, message: Message) -> str:
        """The events, each on a line, with the routing key masked."""
        written = (as_json(render(message, action)) for action in self._events(message, {}))
        return "\n".join(_with_key(MASK, each) for each in written)

    def secrets(self) -> Hashable:
        """Another where the routing key's file is another."""
        return self._routing_key.stamp()

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    def _events(self, message: Message, progress: Progress) -> tuple[Action, ...]:
        """What is still to be sent."""
        if not wording.is_over(message.event):
            return ("trigger",)
        call = message.untold and self._settings.page_resolved and progress != _TRIGGERED
        beginning: tuple[Action, ...] = ("trigger",) if call else ()
        end: tuple[Action, ...] = () if message.keep_open else ("resolve",)
        return (*beginning, *end)

    async def _tell(self, talk: Exchange, message: Message, action: Action) -> Receipt:
        event = await made(message, lambda: render(message, action))
        key, written = secret(self._routing_key), as_json(event)
        talk.sending(_with_key(MASK, written))
        answer = await self._post(key, written)
        talk.answered(f"HTTP {answer.status} {answer.text}", key)
        said = _object(answer.text)
        if answer.status == 202:
            return {"dedup_key": event["dedup_key"], "status": told(str(said.get("status", "")), key)}
        detail, about_the_key = _complaint(answer.status, said, key)
        if about_the_key and await self._refuses(key):
            raise SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
        raise refusal(answer.status, answer.headers, detail, self._clock())

    async def _refuses(self, key: str) -> bool:
        """Whether the routing key is wrong, by an event that holds nothing else, and that PagerDuty drops.

        What it says against a whole event cannot decide that: the words may be those of an alert.

        Raises:
            SendError: it says neither.
        """
        answer = await self._post(key, as_json(_NOTHING))
        if answer.status == 202:
            return False
        detail, about_the_key = _complaint(answer.status, _object(answer.text), key)
        if answer.status != 400:
            raise refusal(answer.status, answer.headers, detail, self._clock())
        return about_the_key

    async def _post(self, key: str, written: str) -> "_Answer":
        headers, body = {"Content-Type": "application/json"}, _with_key(key, written).encode()
        with reached("PagerDuty"):
            async with self._session.get().post(self._settings.url, data=body, headers=headers) as response:
                return _Answer(response.status, response.headers, await words(response))


def render(message: Message, action: Action) -> dict[str, Any]:
    """The event without its routing key, within PagerDuty's limits whatever the alerts hold."""
    event = message.event
    alerts = wording.listed(message)
    several = wording.counts(event) if len(alerts) + event.not_listed > 1 else ""
    untold = "already over" if message.untold and wording.is_over(event) else ""
    aside = ", ".join(filter(None, (several, untold)))
    first = wording.summary(alerts[0][0]) if alerts else wording.counts(event)
    page = wording.alertmanager(event)
    note, contacts = wording.note(message), wording.contacts(message)
    links = [link for _, found in alerts for link in found]

    def common(name: str, otherwise: str) -> str:
        return wording.shorten(wording.one_line(event.common_labels.get(name, "")) or otherwise, 255)

    rendered: dict[str, Any] = {
        "event_action": action,
        "dedup_key": _dedup_key(event),
        "client": "keypulse",
        "payload": {
            "summary": wording.shorten(f"{wording.headline(event)}{f' ({aside})' if aside else ''}: {first}", SUMMARY),
            "severity": wording.severity(event) or wording.Severity.ERROR,  # Alertmanager's default, too
            "source": common("instance", common("service", "keypulse")),
            "component": common("service", ""),
            "group": common("env", ""),
            "class": common("alertname", ""),
            "timestamp": min((alert.starts_at for alert, _ in alerts), default=message.accepted_at).isoformat(),
            "custom_details": {
                **({"note": note} if note else {}),
                "alerts": wording.counts(event),
                **({"escalate_to": contacts} if contacts else {}),
                **_details([alert for alert, _ in alerts]),
            },
        },
        "links": [{"href": link.url, "text": link.text} for link in links[:LINKS]],
    }
    if page:
        rendered["client_url"] = page.url
    return rendered


def _dedup_key(event: Event) -> str:
    named = f"{event.source}\n{event.group_key}" if event.source else event.group_key
    return hashlib.sha256(named.encode(errors="surrogatepass")).hexdigest()


def _details(alerts: Sequence[Alert]) -> dict[str, Any]:
    """The alerts as far as they fit, and how many do not."""
    listed: list[dict[str, Any]] = []
    left = DETAILS
    for alert in alerts:
        detail = {
            "state": wording.when(alert),
            "summary": wording.shorten(wording.summary(alert), _TEXT),
            "description": wording.shorten(wording.description(alert), _TEXT),
            "labels": _bounded(alert.labels),
        }
        left -= len(as_json(detail).encode()) + 1
        if left < 0:
            return {"listed": listed, "more": f"… and {len(alerts) - len(listed)} more"}
        listed.append(detail)
    return {"listed": listed}


def _bounded(labels: Mapping[str, str]) -> dict[str, str]:
    pairs = list(wording.ordered(labels))[:_LABELS]
    return {wording.shorten(key, _LABEL): wording.shorten(value, _LABEL) for key, value in pairs}


def _with_key(key: str, written: str) -> str:
    """An event as JSON, with its routing key."""
    return f'{{"routing_key":{json.dumps(key)},{written[1:]}'


def _object(text: str) -> dict[str, Any]:
    """The answer as an object; empty where it is none: the status alone decides then."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _complaint(status: int, answer: dict[str, Any], key: str) -> tuple[str, bool]:
    """What PagerDuty has against an event, in one sentence, and whether it is the routing key."""
    errors = answer.get("errors")
    said = "; ".join(map(str, errors)) if isinstance(errors, list) and errors else str(answer.get("message", ""))
    detail = f"PagerDuty answered HTTP {status}" + (f": {told(said, key)}" if said else "")
    # PagerDuty says: Invalid routing key. Or: Length of 'routing_key' is incorrect (should be 32 characters).
    return detail, status == 400 and "routing" in said.lower() and "key" in said.lower()
