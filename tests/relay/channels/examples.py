"""Messages and settings for the tests of channels: real payloads, hostile ones, and one example of each kind."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Union, get_args

from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from ops.demo.stand_ins.slack.web_api import WEBHOOK_APP
from services.relay.channels.apprise.plugin import create_plugin
from services.relay.channels.port import ChannelSettings
from services.relay.channels.posting import SecretUrlSettings
from services.relay.channels.registry import AnyChannel
from services.relay.channels.slack.channel import SlackSettings
from services.relay.config import MAX_CONTACT_LENGTH, MAX_CONTACTS
from services.relay.intake.webhook import parse_whole_event
from services.relay.model import (
    Alert,
    DeliveryTask,
    Event,
    ExcerptBlock,
    IncidentContext,
    Links,
    Message,
    RelatedIncident,
    RunbookExcerpt,
    Status,
)
from shared.config.settings import Address
from tests.relay.channels.teams_channel import TeamsSettings

PAYLOADS = Path(__file__).parents[1] / "payloads"
_CLASSES: tuple[type[ChannelSettings], ...] = (*get_args(get_args(AnyChannel)[0]), TeamsSettings)
SECRET = "0123456789abcdef" * 2
RUNBOOK = "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md#kms"
_GROUP = "%7Balertname%3D%22KMSCryptoModeNotKMS%22%2Cenv%3D%22production%22%2Cservice%3D%22backend%22%7D"
ALERTS_URL = f"http://alertmanager:9093/#/alerts?receiver=kms-critical&filter={_GROUP}"
SILENCE_URL = f"http://alertmanager:9093/#/silences/new?filter={_GROUP}"
"""Alertmanager's pages for the payload 01-firing-1."""
INCIDENT = "https://relay.example.org/incidents/incident?episode=1"
DASHBOARD = "https://grafana.example.org/d/kms-crypto-health?var-env=production&var-service=backend"
ADAPTER = TypeAdapter[Any](Annotated[Union[_CLASSES], Field(discriminator="kind")])  # type: ignore[arg-type]  # noqa: UP007


TITLE = "permission_denied: backend cannot encrypt with ledger-kek"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63d8fbff3f0005c402b2c5d4b1f5"
    "0000000049454e44ae426082"
)
"""A picture of one pixel."""
FIX_ANNOTATIONS = {
    "kms_provider": "gcp",
    "kms_key": "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger",
    "kms_reason": "permission_denied",
    "kms_cause": "role_missing",
    "kms_target": "ledger-kek",
}


def kind_of(settings: type[ChannelSettings]) -> str:
    return str(get_args(settings.model_fields["kind"].annotation)[0])


KINDS = {kind_of(each): each for each in _CLASSES} | {"slack_webhook": SlackSettings}
"""The settings of each kind: of the registry, and one that a test adds. `slack_webhook` is Slack by a webhook."""
OWN_KINDS = [kind for kind in KINDS if kind != "teams"]


def example(kind: str, secret_file: Path, provider: Address) -> dict[str, Any]:
    """Settings of this kind that reach `provider` with the secret in `secret_file`.

    A kind whose secret is its URL needs none here; every other one does.
    """
    if kind == "apprise":
        create_plugin("json://127.0.0.1")  # Apprise is loaded before a short time-out begins
        secret_file.write_text(f"json://{provider}/apprise?+Authorization=Bearer%20{SECRET}")
        return {"kind": "apprise", "url_file": secret_file}
    if kind == "slack_webhook":
        secret_file.write_text(f"http://{provider}/slack/services/{'/'.join(WEBHOOK_APP)}/{SECRET}")
        return {"kind": "slack", "webhook_url_file": secret_file}
    if issubclass(KINDS[kind], SecretUrlSettings):
        secret_file.write_text(f"http://{provider}/{kind}/{SECRET}")
        return {"kind": kind, "url_file": secret_file}
    examples: dict[str, dict[str, Any]] = {
        "slack": {
            "channel": "#security-critical",
            "token_file": secret_file,
            "api_url": f"http://{provider}/slack/api/",
        },
        "pagerduty": {"routing_key_file": secret_file, "url": f"http://{provider}/pagerduty/v2/enqueue"},
        "email": {
            "host": provider.host,
            "port": provider.port,
            "tls": "none",
            "username": "keypulse",
            "password_file": secret_file,
            "from": "keypulse <alerts@example.org>",
            "to": ["secops@example.org", "oncall@example.org"],
        },
        "webhook": {"url": f"http://{provider}/webhook", "token_file": secret_file},
        "log": {},
    }
    assert kind in examples, f"add an example of `kind: {kind}` to {__file__}"
    return {"kind": kind, **examples[kind]}


def rotate(file: Path, secret: str) -> None:
    file.write_text(secret)


def settings(values: Mapping[str, Any]) -> ChannelSettings:
    found = ADAPTER.validate_python(values)
    assert isinstance(found, ChannelSettings)
    return found


def message(event: Event | str = "01-firing-1", **changes: Any) -> Message:
    """A message about an event, or about the payload of that name, with links as enrichment makes them."""
    if isinstance(event, str):
        event = parse_whole_event((PAYLOADS / f"{event}.json").read_bytes(), "")
    task = DeliveryTask(
        delivery_id="0192-delivery",
        incident_id="incident",
        episode=1,
        channel="channel",
        accepted_at=datetime(2026, 11, 24, 22, 46, 12, tzinfo=UTC),
    )
    built = Message(task, event, links=tuple(Links(RUNBOOK, DASHBOARD) for _ in event.alerts))
    return change(built, **changes)


def change(message: Message, **changes: Any) -> Message:
    """The message with other fields, of itself or of its task."""
    of_task = {name: changes.pop(name) for name in DeliveryTask._fields if name in changes}
    return replace(message, task=message.task._replace(**of_task), **changes)


def annotated(of: Message, **annotations: str) -> Message:
    """The message with these annotations in each of its alerts."""
    alerts = tuple(replace(alert, annotations={**alert.annotations, **annotations}) for alert in of.event.alerts)
    return replace(of, event=replace(of.event, alerts=alerts))


def titled(of: Message) -> Message:
    """The message with a cause."""
    return annotated(of, title=TITLE)


def detailed(of: Message, text: str = "") -> Message:
    """The message with everything that can be in one; `text` in whatever people or other alerts wrote."""
    now = of.task.accepted_at
    related = RelatedIncident("1", f"{text}KMSCanaryLost · production / backend", now - timedelta(minutes=3))
    context = IncidentContext(
        started_at=now - timedelta(minutes=12),
        episodes_in_7_days=3,
        related=(related,),
        related_count=4,
        previous_at=now - timedelta(minutes=10),
        previous_alerts={"another": Status.FIRING},
        acknowledged_by=f"{text}alice",
        acknowledged_at=now - timedelta(minutes=5),
        escalated_to=("pagerduty", "oncall"),
        escalated_at=now - timedelta(minutes=6),
    )
    blocks = (
        ExcerptBlock("paragraph", f"{text}Read the reason first."),
        ExcerptBlock("step", f"{text}Probe the key:"),
        ExcerptBlock("code", f'{text}curl "$EXPORTER/probe?target=ledger-kek"'),
    )
    values = {alert.fingerprint: f"{text}0 (fires if < 1)" for alert in of.event.alerts}
    excerpt = RunbookExcerpt(f"{text}KMSProbeFailing", blocks, is_truncated=True)
    more = {"excerpt": excerpt, "chart": PNG, "current_values": values, "incident_url": INCIDENT}
    built = change(of, context=context, **more)
    return annotated(built, title=text + TITLE, **FIX_ANNOTATIONS)


def with_text(text: str, alerts: int = 1) -> Message:
    """A message in which everything that an alert's author can write is `text`."""
    labels = {"alertname": text, "env": text, "service": text, "severity": text, "instance": text, text or "x": text}
    alert = Alert(
        status=Status.FIRING,
        labels=labels,
        annotations={"summary": text, "description": text, "runbook_url": text},
        starts_at=datetime(2026, 11, 24, 22, 46, 10, tzinfo=UTC),
        ends_at=None,
        generator_url=text,
        fingerprint="f",
    )
    event = Event(
        source="",
        receiver=text or "r",
        group_key=text or "k",
        status=Status.FIRING,
        alerts=tuple(
            replace(alert, fingerprint=str(i), labels={**labels, "instance": f"{i} {text}"}) for i in range(alerts)
        ),
        group_labels={"alertname": text, "env": text, "service": text},
        common_labels={key: value for key, value in labels.items() if key != "instance"},
        common_annotations={},
        external_url=text,
        truncated_alerts=0,
    )
    links = tuple(Links(text, f"https://x/{i}?{text}") for i in range(alerts))
    return message(event, links=links, contacts=contacts_of(text))


def of_rules(count: int) -> Message:
    """A critical message with an alert of each of so many rules, whose texts have 2,400 characters."""
    of = critical(message(contacts={"on call": "#security"}))
    (alert,) = of.event.alerts
    alerts = tuple(
        replace(
            alert,
            fingerprint=str(number),
            labels={**alert.labels, "alertname": f"Rule{number:02}"},
            annotations={"summary": f"Summary-{number:02}.", "description": f"What {number:02} says.\n" * 150},
        )
        for number in range(count)
    )
    return replace(of, event=replace(of.event, alerts=alerts), links=of.links * count)


def critical(of: Message) -> Message:
    """The same message, were each of its alerts critical."""
    alerts = tuple(replace(alert, labels={**alert.labels, "severity": "critical"}) for alert in of.event.alerts)
    return replace(of, event=replace(of.event, alerts=alerts))


def contacts_of(text: str) -> dict[str, str]:
    """As many contacts as there may be, each as long as it may be, in which everything is `text`."""
    return {f"{n} {text}"[:MAX_CONTACT_LENGTH]: text[:MAX_CONTACT_LENGTH] for n in range(MAX_CONTACTS)}


NASTY = (
    "<!channel> <!here> <@U012ABCDEF> <https://evil.example|Runbook> @channel #general",
    "*bold* _italic_ ~strike~ `code` ```block``` > quote\n> quote",
    "x\r\nBcc: eve@evil.example\r\n\r\nHello\n.\n.\r\nQUIT\r\n",
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'></a>{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "\u202egnp.exe\u202c \u2066isolate\u2069 \x00\x07\x1b[31mred\x7f\u2028line\u2029end\ufeff",
    "https://evil.example/>|x<!channel>\"'\\",
    "=?utf-8?q?encoded?= =?utf-8?b?PCFjaGFubmVsPg==?=",
    "\ud800 half a character \udfff",
    "",
)
HOSTILE = (
    "<!channel> <!everyone> @everyone @here <@U012ABCDEF> ops@everyone <at>Ann</at> @channel",
    "[Runbook](https://evil.example) <https://evil.example|Log> ![x](https://evil.example/x.png)",
    "<script>evil()</script><img src=x onerror=evil()> <a href='https://evil.example'>Log</a> [x](javascript:evil())",
)
"""What mentions, links or runs where it is mark-up; each has `evil` or `everyone`."""
HUGE = ("w" * 20_000, "& < > " * 5_000, "🔥\N{COMBINING ACUTE ACCENT}" * 10_000, '"\\' * 10_000, "line\n" * 5_000)

strange = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=60),
    st.text(alphabet=st.sampled_from('&<>|"\\*_~`\r\n\t #@:!/?=\u202e\ud800é🔥'), max_size=200),
    st.builds(
        lambda unit, times: unit * times, st.sampled_from(["w", "&", "<", "🔥", '"', "é ", "\n"]), st.just(4_000)
    ),
)
"""Text as nobody would write who means well."""

_labels = st.dictionaries(st.one_of(st.sampled_from(["alertname", "env", "severity", "job"]), strange), strange)
_moments = st.datetimes(timezones=st.just(UTC))
_alerts = st.builds(
    Alert,
    status=st.sampled_from(Status),
    labels=_labels,
    annotations=st.dictionaries(st.sampled_from(["title", "summary", "description"]), strange),
    starts_at=_moments,
    ends_at=st.none() | _moments,
    generator_url=strange,
    fingerprint=st.just("f"),
)
_repeated_alerts = st.lists(_alerts, max_size=4).flatmap(
    lambda few: st.integers(0, 30).map(lambda times: tuple(few * times))
)
_events = st.builds(
    Event,
    source=st.just(""),
    receiver=strange,
    group_key=strange,
    status=st.sampled_from(Status),
    alerts=_repeated_alerts,
    group_labels=_labels,
    common_labels=_labels,
    common_annotations=_labels,
    external_url=strange,
    truncated_alerts=st.integers(0, 100),
    remark=strange,
)
_contact = strange.map(lambda text: text[:MAX_CONTACT_LENGTH])
_contacts = st.dictionaries(_contact, _contact, max_size=MAX_CONTACTS)
_urls = st.none() | strange | strange.map(lambda text: f"https://runbooks.example.org/{text}")


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any message that intake could let through, and worse."""
    event = draw(_events)
    links = draw(st.builds(Links, runbook=_urls, dashboard=_urls))
    receipt = draw(st.none() | st.just({"channel": "C1", "ts": "1.000001"}))
    built = message(
        event,
        links=(links,) * len(event.alerts),
        first_receipt=receipt,
        firing_undelivered=draw(st.booleans()),
        remark=draw(strange),
        contacts=draw(_contacts),
    )
    if draw(st.booleans()):
        built = detailed(built, draw(strange))
    return critical(built) if draw(st.booleans()) else built
