"""A webhook of Alertmanager, version 4 → the event to accept, its heartbeats and its route. Pure.

Fields that are not used are skipped. A large webhook is read in parts, and each part is limited at once: whatever it
contains, it takes a few times its size. Grafana sends a superset of the fields, which are documented at
https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from services.relay.intake.routing import (
    RouteSettings,
    WatchdogSettings,
    find_route,
    split_heartbeats,
    split_proofs,
)
from services.relay.model import (
    MAX_TEXT,
    MAX_URL,
    Alert,
    Event,
    Status,
    build_incident_id,
    find_alertname,
    hash_alerts,
    limit_size,
)
from services.relay.outbox.accept import IncomingEvent
from services.relay.outbox.proofs import PathProof
from shared.http.json_api import RefusedError
from shared.http.untrusted_json import UntrustedJsonError, decode_json

PART_BYTES: Final = 256 * 1024
"""Bytes of alerts that are read at once: as objects they may take twenty times as much."""
MAX_TEXTS: Final = 20_000
"""Names and values of one alert, or of a group's common labels, counted where they have over `_COUNT_TEXTS_ABOVE`."""
_COUNT_TEXTS_ABOVE: Final = 64 * 1024
"""Bytes."""
_NONE: Final = msgspec.Raw(b"null")
_EXPECTED_VALUES: Final = {"status": "'firing' or 'resolved'", "version": "'4', as Alertmanager's webhooks have it"}

T = TypeVar("T")


class MalformedWebhookError(RefusedError):
    """No webhook of version 4; the text says where and what was expected, and repeats none of its content."""


class TooManyTextsError(RefusedError):
    """A webhook with so many names and values in one place that they would take too much memory."""

    status = 413


# No enumerations: msgspec's error would hold the text that is none of them, whatever its length.
_Status = Annotated[str, Meta(pattern="^(firing|resolved)$")]
_Moment = Annotated[datetime, Meta(tz=True)]
_Key = Annotated[str, Meta(min_length=1, max_length=65_536)]
_Fingerprint = Annotated[str, Meta(min_length=1, max_length=256)]
_Labels = dict[str, str] | None  # Go's nil map: null


class _WebhookAlert(msgspec.Struct, rename="camel", gc=False):
    status: _Status
    labels: _Labels
    starts_at: _Moment
    fingerprint: _Fingerprint
    annotations: _Labels = None
    ends_at: _Moment | None = None
    generator_url: str = msgspec.field(default="", name="generatorURL")


class _AlertShape(msgspec.Struct, rename="camel", gc=False):
    """The fields that every alert has, and its size."""

    status: _Status
    labels: msgspec.Raw
    starts_at: _Moment
    fingerprint: _Fingerprint


class _WebhookShape(msgspec.Struct):
    alerts: list[_AlertShape]


class _Webhook(msgspec.Struct, rename="camel"):
    version: Annotated[str, Meta(pattern="^4$")]
    receiver: _Key
    group_key: _Key
    status: _Status
    alerts: Annotated[list[msgspec.Raw], Meta(min_length=1)]
    group_labels: msgspec.Raw = _NONE
    common_labels: msgspec.Raw = _NONE
    common_annotations: msgspec.Raw = _NONE
    external_url: str = msgspec.field(default="", name="externalURL")
    truncated_alerts: Annotated[int, Meta(ge=0)] = 0


_WEBHOOK: Final = msgspec.json.Decoder(_Webhook)
_SHAPE: Final = msgspec.json.Decoder(_WebhookShape)
_ALERT: Final = msgspec.json.Decoder(_WebhookAlert)
_LABELS: Final = msgspec.json.Decoder(_Labels)


def parse_whole_event(body: bytes, source: str) -> Event:
    """A webhook's body → its event, all at once. Raises what `iterate_parts` does."""
    first, *others = iterate_parts(body, source)
    return replace(first, alerts=tuple(alert for part in (first, *others) for alert in part.alerts))


def iterate_parts(body: bytes, source: str) -> Iterator[Event]:
    """The event of the JSON that a source sent, in parts that have some of its alerts each; almost always one.

    Raises:
        MalformedWebhookError: it is no webhook.
        TooManyTextsError: it would take too much memory.
    """
    if len(body) > PART_BYTES:
        _decode(_SHAPE, body)  # in `[0,0,…]` each piece below would take thirty times its bytes
    webhook = _decode(_WEBHOOK, body)
    build_event = partial(
        Event,
        source=source,
        receiver=webhook.receiver,
        group_key=webhook.group_key,
        status=Status(webhook.status),
        group_labels=_decode_part(_LABELS, webhook.group_labels, "groupLabels") or {},
        common_labels=_decode_part(_LABELS, webhook.common_labels, "commonLabels") or {},
        common_annotations=_decode_part(_LABELS, webhook.common_annotations, "commonAnnotations") or {},
        external_url=webhook.external_url,
        truncated_alerts=webhook.truncated_alerts,
    )
    alerts: list[Alert] = []
    size = 0
    for number, piece in enumerate(webhook.alerts):
        if alerts and size + len(memoryview(piece)) > PART_BYTES:
            yield build_event(alerts=tuple(alerts))
            alerts.clear()
            size = 0
        alerts.append(_build_alert(number, piece))
        size += len(memoryview(piece))
    yield build_event(alerts=tuple(alerts))


def _decode_part(decoder: msgspec.json.Decoder[T], raw: msgspec.Raw, location: str) -> T:
    size = len(memoryview(raw))
    if size > _COUNT_TEXTS_ABOVE and bytes(raw).count(b'"') > 2 * MAX_TEXTS:
        raise TooManyTextsError(f"{location}: over {MAX_TEXTS} names and values")
    return _decode(decoder, raw, location)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, location: str = "") -> T:
    try:
        return decode_json(decoder, body, location, _EXPECTED_VALUES)
    except UntrustedJsonError as error:
        raise MalformedWebhookError(str(error)) from None


def _build_alert(number: int, raw: msgspec.Raw) -> Alert:
    alert = _decode_part(_ALERT, raw, f"alerts.{number}")
    status = Status(alert.status)
    try:
        starts_at = alert.starts_at.astimezone(UTC)
        # That of a firing alert is zeroed: year 1. No sender's clock makes an alert end before it starts.
        is_ended = status is Status.RESOLVED and alert.ends_at is not None and alert.ends_at >= alert.starts_at
        ends_at = alert.ends_at.astimezone(UTC) if is_ended and alert.ends_at else None
    except OverflowError:
        raise MalformedWebhookError(f"alerts.{number}.startsAt: expected times from the year 1 to 9999") from None
    return Alert(
        status=status,
        labels=alert.labels or {},
        annotations=alert.annotations or {},
        starts_at=starts_at,
        ends_at=ends_at,
        generator_url=alert.generator_url,
        fingerprint=alert.fingerprint,
    )


class ParsedWebhook(NamedTuple):
    heartbeats: frozenset[str]
    """The watchdogs whose alerts fire in it."""
    proofs: frozenset[PathProof]
    """The proofs of the path that are raised in it."""
    incoming: IncomingEvent | None
    """The event of its other alerts; None if there are none."""
    route: RouteSettings | None
    """The first route that matches any alert."""


def parse_webhook(
    body: bytes,
    source: str,
    watchdogs: Sequence[WatchdogSettings],
    routes: Sequence[RouteSettings],
    proven_channels: Collection[str] = (),
) -> ParsedWebhook:
    """Parses the JSON that a source sent; `split_proofs` has the channels.

    Raises MalformedWebhookError, TooManyTextsError.
    """
    event: Event | None = None
    heartbeats: frozenset[str] = frozenset()
    proofs: frozenset[PathProof] = frozenset()
    total, route, candidates, has_left_out = 0, None, routes, False
    for part in iterate_parts(body, source):
        others, found = split_heartbeats(part, watchdogs)
        heartbeats |= found
        if others is not None:
            others, raised = split_proofs(others, proven_channels)
            proofs |= raised
        has_left_out |= others is not part
        if others is None:
            continue
        total += hash_alerts(others)
        index = find_route(others, candidates)
        if index is not None:
            route, candidates = candidates[index], candidates[:index]
        event = others if event is None else replace(event, alerts=event.alerts + others.alerts)
        if len(body) > MAX_URL:  # in a smaller one, as almost always, no text is over its bound
            event = limit_size(event)
    if event is None:
        return ParsedWebhook(heartbeats, proofs, None, None)
    if has_left_out:
        firing = event.unlisted_firing or any(alert.status is Status.FIRING for alert in event.alerts)
        event = replace(event, status=Status.FIRING if firing else Status.RESOLVED)
    incoming = IncomingEvent(
        event=event,
        incident_id=build_incident_id(event),
        fingerprint=f"{total % 2**256:064x}",
        alertname=find_alertname(event)[:MAX_TEXT],
        body=body,
    )
    return ParsedWebhook(heartbeats, proofs, incoming, route)
