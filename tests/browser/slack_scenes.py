"""What an incident looks like in Slack from its beginning to its end, posted by the relay's own channel."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ops.demo.stand_ins.app import StandIns
from services.relay.channels.port import Channel, EditingChannel, Receipt
from services.relay.model import (
    DigestEntry,
    ExcerptBlock,
    IncidentContext,
    Message,
    RelatedIncident,
    RunbookExcerpt,
    Status,
)
from tests.relay.channels.examples import (
    FIX_ANNOTATIONS,
    INCIDENT,
    NASTY,
    annotated,
    change,
    critical,
    example,
    message,
    settings,
    with_text,
)
from tests.relay.channels.recording_attempt import Recorded, send

AT = datetime(2026, 11, 24, 22, 46, 10, tzinfo=UTC)
TITLE = "role_missing: backend (production) cannot encrypt with ledger-kek"
EXCERPT = RunbookExcerpt(
    "KMSProbeFailing",
    (
        ExcerptBlock(
            "paragraph",
            "The exporter cannot encrypt and decrypt with the key. Writes fail as soon as the cached data key expires.",
        ),
        ExcerptBlock("step", "Read why the last probe failed."),
        ExcerptBlock("code", "curl -s 'http://127.0.0.1:9911/probe?target=ledger-kek&debug=true' | tail -20"),
        ExcerptBlock("step", "Read who changed IAM in the last hour."),
    ),
    is_truncated=True,
)
"""As the runbook of the alert has it."""
REFUSED: dict[str, dict[str, str]] = {
    "perimeter": {"kms_reason": "permission_denied"},
    "ekm_denied": {"kms_reason": "permission_denied", "kms_version": "3"},
    "token_expired": {"kms_reason": "unauthenticated"},
}
"""Causes that no role repairs, and what the alert says besides."""
BUTTONS: Any = ("acknowledge", "silence")


class SlackScene:
    """Sends to the stand-in what the relay would.

    Args:
        stand_ins: running.
        folder: for the bot's token.
    """

    def __init__(self, stand_ins: StandIns, folder: Path, token: str) -> None:
        secret = folder / "slack_token"
        secret.write_text(token)
        values = example("slack", secret, stand_ins.http)
        self._channel: Channel = settings({**values, "mention": "channel"}).connect(10)

    async def close(self) -> None:
        await self._channel.close()

    async def firing(self) -> Receipt:
        related = (RelatedIncident("1", "KMSRotationOverdue · production / backend", AT - timedelta(hours=3)),)
        context = IncidentContext(started_at=AT, episodes_in_7_days=3, related=related, related_count=1)
        return await send(self._channel, _incident(context=context, excerpt=EXCERPT, buttons=BUTTONS))

    async def changed(self) -> Receipt:
        """A second instance fires, too."""
        receipt = await self.firing()
        two = _two_instances()
        before = {two.event.alerts[0].fingerprint: Status.FIRING}
        context = IncidentContext(started_at=AT, previous_at=AT + timedelta(minutes=2), previous_alerts=before)
        later = {"accepted_at": AT + timedelta(minutes=7), "first_receipt": receipt, "delivery_id": "second"}
        await send(self._channel, change(two, context=context, **later))
        await self._edit(change(two, context=context, **later, excerpt=EXCERPT, buttons=BUTTONS))
        return receipt

    async def acknowledged(self) -> Receipt:
        receipt = await self.firing()
        context = IncidentContext(
            started_at=AT,
            acknowledged_by="Ann Example",
            acknowledged_at=AT + timedelta(minutes=4),
            episodes_in_7_days=3,
        )
        await self._edit(_incident(context=context, first_receipt=receipt, excerpt=EXCERPT, buttons=BUTTONS))
        return receipt

    async def resolved(self) -> Receipt:
        receipt = await self.changed()
        two = _two_instances()
        end = AT + timedelta(minutes=12)
        alerts = tuple(replace(alert, status=Status.RESOLVED, ends_at=end) for alert in two.event.alerts)
        event = replace(two.event, status=Status.RESOLVED, alerts=alerts)
        before = {alert.fingerprint: Status.FIRING for alert in alerts}
        context = IncidentContext(started_at=AT, previous_at=AT + timedelta(minutes=7), previous_alerts=before)
        over = {"accepted_at": end, "first_receipt": receipt, "delivery_id": "third", "context": context}
        await send(self._channel, change(replace(two, event=event), **over))
        await self._edit(change(replace(two, event=event), **over))
        return receipt

    async def twenty(self) -> Receipt:
        base = message("05-firing-3")
        first = base.event.alerts[0]
        alerts = tuple(
            replace(
                first,
                fingerprint=f"{n}",
                labels={**first.labels, "instance": f"backend-{n}:8000", "zone": f"europe-west{n % 3 + 1}-b"},
                starts_at=AT + timedelta(seconds=7 * n),
                status=Status.RESOLVED if n > 16 else Status.FIRING,
                ends_at=AT + timedelta(minutes=9) if n > 16 else None,
            )
            for n in range(20)
        )
        common = {key: value for key, value in first.labels.items() if key != "instance"}
        event = replace(base.event, alerts=alerts, common_labels=common)
        return await send(
            self._channel, replace(base, event=event, links=base.links[:1] * 20, buttons=BUTTONS, incident_url=INCIDENT)
        )

    async def refused(self, cause: str) -> Receipt:
        return await send(self._channel, change(build_refused(cause), buttons=BUTTONS))

    async def digest(self) -> Receipt:
        """The incidents of a storm, of which some are over."""
        services = ("backend", "ledger", "payments")
        entries = tuple(_build_entry(service, number) for service in services for number in range(8))
        return await send(self._channel, replace(message(), digest=entries))

    async def hostile(self) -> Receipt:
        text = f"{NASTY[0]} {NASTY[1]} {NASTY[3]}"
        context = IncidentContext(acknowledged_by=text, acknowledged_at=AT, related=(RelatedIncident("1", text, AT),))
        given = change(critical(with_text(text)), context=context, remark=text, buttons=BUTTONS)
        return await send(self._channel, given)

    async def _edit(self, message: Message) -> None:
        assert isinstance(self._channel, EditingChannel)
        await self._channel.edit(Recorded(change(message, is_edit=True)))


def _incident(**changes: Any) -> Message:
    firing = annotated(message(), title=TITLE, summary="KMS refuses to encrypt with ledger-kek", **FIX_ANNOTATIONS)
    described = "9 of the last 10 probes failed. New records cannot be written once the cached data key expires."
    return change(annotated(firing, description=described), incident_url=INCIDENT, **changes)


def build_refused(cause: str) -> Message:
    """KMSProbeFailing as its rule fills it in for a cause."""
    firing = annotated(
        message(incident_url=INCIDENT, context=IncidentContext(started_at=AT)),
        **{**FIX_ANNOTATIONS, **REFUSED[cause], "kms_cause": cause},
        title=f"{cause}: backend (production) cannot encrypt with ledger-kek",
        summary="Every round trip with ledger-kek has failed for 30 s or more",
        description="Last successful round trip: 2026-11-24 22:45:36 UTC. backend works on while it has its data keys "
        "in memory; from its next start or its next new data key it may fail.",
    )
    event, labels = firing.event, {"alertname": "KMSProbeFailing", "env": "production", "service": "backend"}
    of_alert = {**labels, "severity": "critical", "target": "ledger-kek"}
    alerts = (replace(event.alerts[0], labels=of_alert),)
    return replace(firing, event=replace(event, group_labels=labels, common_labels=of_alert, alerts=alerts))


def _build_entry(service: str, number: int) -> DigestEntry:
    is_over, is_critical = number > 5, (service, number) == ("backend", 0)
    list_url, key = "https://relay.example.org/incidents?state=open", f"{service}-kek-{number}"
    return DigestEntry(
        title=f"role_missing: {service} (production) cannot encrypt with {key}",
        status=Status.RESOLVED if is_over else Status.FIRING,
        severity="critical" if is_critical else "warning",
        counts="1 resolved" if is_over else "1 firing",
        service=f"{service} (production)",
        link=f"https://relay.example.org/incidents/{key}?episode=1",
        service_link=f"{list_url}&service={service}",
        receiver_link="https://alertmanager.internal/#/alerts?receiver=kms-security",
        is_named_only=is_critical,
    )


def _two_instances() -> Message:
    one = _incident()
    (alert,) = one.event.alerts
    other = replace(alert, fingerprint="other", labels={**alert.labels, "instance": "backend-2:8000"})
    event = replace(one.event, alerts=(alert, replace(other, starts_at=AT + timedelta(minutes=6))))
    common = {key: value for key, value in alert.labels.items() if key != "instance"}
    return replace(one, event=replace(event, common_labels=common), links=one.links * 2)


SCENES: dict[str, Callable[[SlackScene], Awaitable[Receipt]]] = {
    "firing": SlackScene.firing,
    "changed": SlackScene.changed,
    "acknowledged": SlackScene.acknowledged,
    "resolved": SlackScene.resolved,
    "twenty": SlackScene.twenty,
    "digest": SlackScene.digest,
    "hostile": SlackScene.hostile,
    **{cause: partial(SlackScene.refused, cause=cause) for cause in REFUSED},
}
