"""PagerDuty, through the Events API v2. The receipt is the reply's dedup_key.

The dedup_key is Alertmanager's own, so an Alertmanager that pages with the same routing key opens no second incident
beside one that is open, and an event that is sent again, because its reply was lost, changes nothing. A webhook's
`source` is part of the key, because independent Alertmanagers often have groups with the same groupKey.
https://developer.pagerduty.com/docs/send-alert-event

An acknowledgement is a separate event, after the trigger. PagerDuty drops it if nothing is open, or if another
routing key opened it. An incident that is acknowledged calls nobody again, whatever is triggered: who acknowledged it
has to look. PagerDuty's API has no event that withdraws an acknowledgement.
https://developer.pagerduty.com/docs/events-api-v2-overview

So where the resolve of an earlier episode did not arrive, it is sent before the next trigger.

PagerDuty drops a resolve if nothing is open. So an incident that was resolved before its firing was delivered is
triggered and then resolved, as two events; `page_resolved: false` sends the resolve alone, and nobody is called.

An event may have 512 KB. What a person needs first is added first; what no longer fits is left out, and counted.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urljoin

from services.relay.channels.port import (
    Attempt,
    ChannelProof,
    MessageRate,
    Progress,
    ProofLevel,
    ProofSettings,
    Receipt,
    SendError,
    SendReason,
    SendScope,
)
from services.relay.channels.posting import Answer, HttpChannel, HttpChannelSettings, post_json
from services.relay.channels.requests import (
    MASK,
    ProviderCall,
    build_in_thread_if_large,
    build_status_error,
    call_provider,
    create_check,
    mask_reply,
    read_secret,
)
from services.relay.http import encode_json
from services.relay.model import Event, Message, Status
from services.relay.text import (
    AlertCard,
    AlertTable,
    Severity,
    View,
    build_distinct,
    build_view,
    clean_line,
    clean_text,
    find_worst_severity,
    fit_first,
    format_headline,
    format_summary,
    is_resolved,
    limit_labels,
    list_images,
    truncate,
)
from shared.check import Check, CheckError
from shared.config.file_checks import FileCheck, FileCheckError, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import FilePath, ProviderUrl

Action = Literal["resolve_earlier", "trigger", "acknowledge", "resolve"]
"""What an event does. `resolve_earlier` resolves the incident of an earlier episode."""

MAX_SUMMARY: Final = 1_024
MAX_LINKS: Final = 20
MAX_IMAGES: Final = 3
MAX_DETAILS_BYTES: Final = 400_000  # of the 512 KB that an event may have
_MAX_TEXT: Final = 2_000
_MAX_LABEL: Final = 500
_MAX_LABELS: Final = 64
_MAX_CARDS: Final = 100
_MAX_TABLES: Final = 10
_MAX_ROWS: Final = 100


def build_event(message: Message, action: Action) -> dict[str, Any]:
    """The event without its routing key, within PagerDuty's limits whatever the alerts hold."""
    event = message.event
    if action in ("acknowledge", "resolve_earlier"):  # of no state of the event
        return {"event_action": action.removesuffix("_earlier"), "dedup_key": build_dedup_key(event)}
    view = build_view(message, max_cards=_MAX_CARDS, max_tables=_MAX_TABLES, max_rows=_MAX_ROWS)
    links = [link for _, found in view.alerts for link in found]
    group_links = [*view.incident_links, *view.group_links]

    def common(name: str, otherwise: str) -> str:
        return truncate(clean_line(event.common_labels.get(name, "")) or otherwise, 255)

    rendered: dict[str, Any] = {
        "event_action": action,
        "dedup_key": build_dedup_key(event),
        "client": "keypulse",
        "payload": {
            "summary": truncate(_format_summary(message, view), MAX_SUMMARY),
            "severity": find_worst_severity(event) or Severity.ERROR,  # Alertmanager's default, too
            "source": common("instance", common("service", "keypulse")),
            "component": common("service", ""),
            "group": common("env", ""),
            "class": common("alertname", ""),
            "timestamp": min((each.starts_at for each in event.alerts), default=message.task.accepted_at).isoformat(),
            "custom_details": _fit_details(view),
        },
        "links": [{"href": link.url, "text": link.text} for link in (*links[: MAX_LINKS - 2], *group_links[1:])],
    }
    if images := list_images(message)[:MAX_IMAGES]:
        rendered["images"] = [{"src": url, "href": url, "alt": view.title} for url in images]
    if group_links:
        rendered["client_url"] = group_links[0].url
    return rendered


def build_dedup_key(event: Event) -> str:
    """The key of the incident in PagerDuty: Alertmanager's own, and another for each source.

    No groupKey of Alertmanager has a zero byte: one that has would otherwise be the key of another source.
    """
    is_own = not event.source and "\0" not in event.group_key
    named = event.group_key if is_own else f"{event.source}\0{event.group_key}"
    return hashlib.sha256(named.encode(errors="surrogatepass")).hexdigest()


def _format_summary(message: Message, view: View) -> str:
    """The cause first, then how many alerts and which; without a cause the headline and the first alert's summary."""
    event = message.event
    several = view.counts if len(event.alerts) + event.unlisted_count > 1 else ""
    late_resolve = "already resolved" if message.task.firing_undelivered and is_resolved(event) else ""
    aside = ", ".join(filter(None, (several, late_resolve)))
    counted = f" ({aside})" if aside else ""
    if view.headline:
        return f"{view.subject}{counted} · {view.headline}"
    firing_first = sorted(event.alerts, key=lambda alert: alert.status is Status.RESOLVED)
    first = format_summary(firing_first[0]) if firing_first else view.counts
    title = view.subject if is_resolved(event) and not late_resolve else format_headline(event)
    return f"{title}{counted}: {first}"


def _fit_details(view: View) -> dict[str, Any]:
    """The details in the order of their worth, each as far as it fits: of a list as many as do, and how many do not."""
    details: dict[str, Any] = {}
    left = MAX_DETAILS_BYTES
    for name, value in _build_details(view).items():
        if not value:
            continue
        added = {name: value}
        size = _measure(added)
        if size > left:
            items = fit_first(value, left - _measure(name) - 50, _measure) if isinstance(value, list) else []
            added = {name: items, f"{name}_left_out": len(value) - len(items)} if items else {}
            size = _measure(added)
        details |= added
        left -= size
    return details


def _build_details(view: View) -> dict[str, Any]:
    """Empty ones are left out."""
    context = {line.name: list(line.items) if len(line.items) > 1 else line.items[0] for line in view.context}
    blocks = view.excerpt.blocks if view.excerpt else ()
    return {
        "fix": [{"do": fix.title, "run": fix.command} for fix in view.fixes],
        "remark": view.remark,
        "alerts": view.counts,
        "missing": view.omission,
        "escalate_to": view.contacts,
        "context": context,
        "listed": [_build_table(each) if isinstance(each, AlertTable) else _build_card(each) for each in view.parts],
        "more": view.more,
        "runbook": [truncate(clean_text(block.text), _MAX_TEXT) for block in blocks],
    }


def _build_card(card: AlertCard) -> dict[str, Any]:
    is_described = card.alert.status is Status.FIRING or card.description
    return {
        **({"title": card.title} if card.title else {}),
        "state": card.period,
        **({"now": truncate(card.value, _MAX_LABEL)} if card.value else {}),
        "summary": truncate(card.summary, _MAX_TEXT),
        **({"description": truncate(card.description, _MAX_TEXT)} if is_described else {}),
        "labels": build_distinct(limit_labels(card.alert.labels, _MAX_LABELS, _MAX_LABEL)),
    }


def _build_table(table: AlertTable) -> dict[str, Any]:
    rows = [" | ".join(row) for row in table.rows]
    more = {"more": table.more} if table.more else {}
    return {"alerts": table.caption, "columns": " | ".join(table.columns), "rows": rows, **more}


def _measure(value: object) -> int:
    return len(encode_json(value).encode()) + 1


_OWN_URL: Final = "https://events.pagerduty.com/v2/enqueue"
_TRIGGERED: Progress = {"triggered": "yes"}
_PROGRESS: Final[Mapping[Action, Progress]] = {
    "resolve_earlier": {"earlier_resolved": "yes"},
    "trigger": _TRIGGERED,
}
"""What a delivery has done once PagerDuty has the event."""
_KEY_CHECK_EVENT: Final = {"event_action": "resolve", "dedup_key": "keypulse checks its routing key"}
"""No incident has such a key, and PagerDuty drops a resolve where nothing is open."""
_PROOF_SUMMARY: Final = "keypulse proves that PagerDuty takes events of this service: nothing has changed"


def _check_routing_key(secret: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9]{32}", secret):
        raise FileCheckError(
            f"expected 32 letters and digits, and it has {len(secret)} characters",
            "copy the integration key of an integration `Events API V2`",
        )


_EXPECTED_KEY: Final = "expected a file with the integration key of an integration `Events API V2`"
RoutingKeyPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_KEY, _check_routing_key))]
"""A file with a routing key, whose shape `--check` checks."""


class PagerDutySettings(HttpChannelSettings):
    """A service of PagerDuty, by the routing key of its Events API v2 integration."""

    # For each integration key: https://community.pagerduty.com/forum/t/monitoring-api-rate-limiting/3318
    shows_values: ClassVar[bool] = True
    provider_rate: ClassVar[MessageRate | None] = MessageRate(120 / 60)
    acknowledges: ClassVar[bool] = True

    kind: Literal["pagerduty"]
    routing_key_file: RoutingKeyPath
    url: ProviderUrl = _OWN_URL
    page_resolved: bool = True
    """Whether somebody is called for an incident that is resolved before its firing was delivered."""

    @property
    def destination(self) -> str:
        return "PagerDuty, to the service of its routing key"

    def describe_proof_limit(self, proof: ProofSettings) -> str:
        return "" if proof.pagerduty_changes else "set `proof.pagerduty_changes`, which sends change events"

    def connect(self, timeout: float) -> "PagerDutyChannel":
        return PagerDutyChannel(self, timeout)


class PagerDutyChannel(HttpChannel):
    """Sends events to one service of PagerDuty."""

    def __init__(self, settings: PagerDutySettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._routing_key = SecretFile(settings.routing_key_file)
        super().__init__("PagerDuty", settings, [self._routing_key], timeout, clock)

    async def send(self, attempt: Attempt) -> Receipt:
        """Triggers, acknowledges or resolves the incident; the receipt holds its `dedup_key` and PagerDuty's `status`.

        Once PagerDuty has an acknowledgement, the receipt also has its time, as `acknowledged`.
        """
        message = attempt.message
        actions = self._list_actions(message, attempt.progress)
        receipt: Receipt = {}
        async with call_provider(attempt, "PagerDuty", self._timeout) as call:
            for number, action in enumerate(actions):
                if number:
                    await attempt.save_progress(_PROGRESS[actions[number - 1]])
                receipt = await self._send_event(call, message, action)
        return {**receipt, "acknowledged": message.task.acknowledgement} if "acknowledge" in actions else receipt

    def render_payload(self, message: Message) -> str:
        """The events, each on a line, with the routing key masked."""
        payloads = (encode_json(build_event(message, action)) for action in self._list_actions(message, {}))
        return "\n".join(_add_routing_key(MASK, each) for each in payloads)

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether the Events API answers; only an event shows whether PagerDuty knows the routing key, see `prove`."""
        return [create_check(f"{key} Events API", self._check_api)]

    async def _check_api(self) -> str:
        answer = await self._post("{}")  # the empty object: no event
        if answer.status != 400 or not _parse_reply(answer.text):
            raise CheckError(
                f"what answers is not PagerDuty's Events API (HTTP {answer.status})", "correct `url`, or leave it out"
            )
        return "answers; a proof or send-test shows whether PagerDuty knows the routing key"

    async def prove(self, proof: ProofSettings) -> ChannelProof:
        """Its routing key by an event that PagerDuty drops, and a change event, which calls nobody.

        https://developer.pagerduty.com/docs/send-change-event
        """
        try:
            key = read_secret(self._routing_key)
            is_unknown = await self._is_key_invalid(key)
        except SendError as error:
            return ChannelProof(None, str(error))
        if is_unknown:
            return ChannelProof(None, f"PagerDuty does not know the routing key; correct {self._routing_key.path}")
        if not proof.pagerduty_changes:
            return ChannelProof(ProofLevel.REACHABLE)
        now = datetime.fromtimestamp(self._clock(), UTC)
        payload = {"summary": _PROOF_SUMMARY, "source": "keypulse", "timestamp": now.isoformat()}
        body = _add_routing_key(key, encode_json({"payload": payload}))
        answer = await post_json(self._session, "PagerDuty", urljoin(self._settings.url, "change/enqueue"), body)
        if answer.status != 202:
            detail, _ = _explain_rejection(answer.status, _parse_reply(answer.text), key)
            raise build_status_error(answer.status, answer.headers, f"change event: {detail}", self._clock())
        return ChannelProof(ProofLevel.ACCEPTED)

    def _list_actions(self, message: Message, progress: Progress) -> tuple[Action, ...]:
        task = message.task
        if is_resolved(message.event):
            triggers = task.firing_undelivered and self._settings.page_resolved and progress != _TRIGGERED
            end: tuple[Action, ...] = ("resolve",)
        elif task.acknowledgement:
            triggers = not task.is_repeat and progress != _TRIGGERED
            end = ("acknowledge",)
        else:
            triggers, end = True, ()
        resolves_earlier = triggers and task.resolves_earlier and not progress
        beginning: tuple[Action, ...] = ("resolve_earlier",) if resolves_earlier else ()
        return (*beginning, *(("trigger",) if triggers else ()), *end)

    async def _send_event(self, call: ProviderCall, message: Message, action: Action) -> Receipt:
        event = await build_in_thread_if_large(message, lambda: build_event(message, action))
        key, payload = read_secret(self._routing_key), encode_json(event)
        call.before_request(_add_routing_key(MASK, payload))
        answer = await self._post(_add_routing_key(key, payload))
        call.record_reply(f"HTTP {answer.status} {answer.text}", key)
        reply = _parse_reply(answer.text)
        if answer.status == 202:
            return {"dedup_key": event["dedup_key"], "status": mask_reply(str(reply.get("status", "")), key)}
        detail, about_the_key = _explain_rejection(answer.status, reply, key)
        if about_the_key and await self._is_key_invalid(key):
            raise SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
        raise build_status_error(answer.status, answer.headers, detail, self._clock())

    async def _is_key_invalid(self, key: str) -> bool:
        """Whether the routing key is wrong, by an event that holds nothing else, and that PagerDuty drops.

        The rejection of a whole event cannot decide that: it may quote an alert. Raises SendError where PagerDuty
        answers neither.
        """
        answer = await self._post(_add_routing_key(key, encode_json(_KEY_CHECK_EVENT)))
        if answer.status == 202:
            return False
        detail, about_the_key = _explain_rejection(answer.status, _parse_reply(answer.text), key)
        if answer.status != 400:
            raise build_status_error(answer.status, answer.headers, detail, self._clock())
        return about_the_key

    async def _post(self, body: str) -> Answer:
        return await post_json(self._session, "PagerDuty", self._settings.url, body)


def _add_routing_key(key: str, event_json: str) -> str:
    return f'{{"routing_key":{json.dumps(key)},{event_json[1:]}'


def _parse_reply(text: str) -> dict[str, Any]:
    """The answer as an object; empty if it is none: the status alone decides then."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _explain_rejection(status: int, reply: dict[str, Any], key: str) -> tuple[str, bool]:
    """What PagerDuty has against an event, in one sentence, and whether it is the routing key."""
    errors = reply.get("errors")
    cause = "; ".join(map(str, errors)) if isinstance(errors, list) and errors else str(reply.get("message", ""))
    detail = f"PagerDuty answered HTTP {status}" + (f": {mask_reply(cause, key)}" if cause else "")
    # PagerDuty replies: Invalid routing key. Or: Length of 'routing_key' is incorrect (should be 32 characters).
    return detail, status == 400 and "routing" in cause.lower() and "key" in cause.lower()
