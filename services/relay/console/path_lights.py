"""The path of an alert as lights, each with its last proof: exporter, rules, heartbeats, intake, store, sender. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.relay.console.prometheus_facts import EXPORTER_JOB, PrometheusFacts
from services.relay.delivery.enrichment.prometheus import RuleGroup
from services.relay.outbox.webhook_times import WebhookTimes
from services.relay.console.status import HealthStatus
from shared.web.time_format import format_bytes, format_duration

OWN_RULE_GROUPS: Final = frozenset({"keypulse_exporter", "kms_keys", "kms_crypto", "keypulse_relay"})
"""The groups of ops/prometheus/rules; where Prometheus has any of them, only these count."""
RECENT_SECONDS: Final = 900.0
"""How long a refused webhook makes the intake's light amber."""
_STORE_SILENCE: Final = 60.0
"""Seconds without a commit, of which a relay makes some in every minute."""
_NEARLY_FULL: Final = 0.9
_LATE_EVALUATIONS: Final = 3
"""Intervals after which rules count as not evaluated."""
_REFUSALS: Final = {400: "no webhook", 401: "wrong credentials", 403: "not allowed", 413: "too large", 500: "a defect"}
_REFUSED_503: Final = "the relay could not commit; Alertmanager sends it again"


@dataclass(frozen=True, slots=True)
class Light:
    """One part of the path."""

    name: str
    status: HealthStatus
    text: str
    """What is known, in one sentence."""
    proof: str = ""
    """What `at` is the time of."""
    at: float | None = None
    """The last proof that it works, unix seconds; None if there is none."""
    hint: str = ""
    """What to do; empty where nothing is."""
    href: str = ""
    """Where more is known of it; empty if nowhere."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """An awaited heartbeat."""

    name: str
    """Of its watchdog."""
    expect_every: float
    """Seconds."""
    at: float | None
    """The last one, unix seconds; None if none has come."""
    awaited_since: float | None
    """The last one, or since when one is awaited; None if that is not known yet."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """How the store does."""

    error: str | None
    committed_at: float | None
    used_bytes: int
    max_bytes: int
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class IntakeFacts:
    """What came, and what was refused."""

    token_error: str | None
    """Why nobody may send, or None."""
    times: WebhookTimes
    answered_at: Mapping[int, float]
    """When this relay last answered a webhook with each status."""


def build_exporter_light(facts: PrometheusFacts | None, *, is_configured: bool) -> Light:
    """Whether Prometheus scrapes the exporter."""
    name = "Exporter"
    if facts is None or facts.error or not is_configured:
        return _build_unknown_light(name, facts, is_configured=is_configured)
    if not facts.scrapes:
        text = f"Prometheus has no target of the job {EXPORTER_JOB}."
        return Light(name, HealthStatus.UNKNOWN, text, hint=f"Scrape the exporter, in a job of the name {EXPORTER_JOB}.")
    failed = [scrape.instance for scrape in facts.scrapes if scrape.at is None]
    at = min((scrape.at for scrape in facts.scrapes if scrape.at is not None), default=None)
    total = len(facts.scrapes)
    if failed:
        status = HealthStatus.FAILING if len(failed) == total else HealthStatus.DEGRADED
        text = f"{len(failed)} of {total} cannot be scraped: {_join(failed)}."
        hint = "See whether it runs, and whether Prometheus reaches it: the target's page in Prometheus has the error."
        return Light(name, status, text, "scraped", at, hint)
    return Light(name, HealthStatus.HEALTHY, "Scraped by Prometheus.", "scraped", at)


def build_rules_light(facts: PrometheusFacts | None, now: float, *, is_configured: bool) -> Light:
    """Whether Prometheus evaluates the rules."""
    name = "Rules"
    if facts is None or facts.error or not is_configured:
        return _build_unknown_light(name, facts, is_configured=is_configured)
    groups = [group for group in facts.groups if group.name in OWN_RULE_GROUPS] or facts.groups
    if not groups:
        hint = "Load ops/prometheus/rules: `rule_files` of Prometheus."
        return Light(name, HealthStatus.FAILING, "Prometheus has no alerting rule.", hint=hint)
    at = min((group.evaluated_at or 0.0) for group in groups) or None
    late = [group.name for group in groups if _is_late(group, now)]
    if late:
        text = f"Not evaluated in time: {_join(late)}."
        return Light(name, HealthStatus.FAILING, text, "evaluated", at, "See Prometheus's log and its page of rules.")
    failing = next((group for group in groups if group.failing_rule), None)
    if failing is not None:
        text = f"{failing.failing_rule} cannot be evaluated: {failing.error}"
        return Light(name, HealthStatus.DEGRADED, text, "evaluated", at, "Correct the rule: Prometheus's page of rules.")
    rules = sum(group.rules for group in groups)
    return Light(name, HealthStatus.HEALTHY, f"{rules} alerting {'rule' if rules == 1 else 'rules'}.", "evaluated", at)


def build_heartbeat_lights(heartbeats: Sequence[Heartbeat], now: float) -> list[Light]:
    """Whether Prometheus's and Alertmanager's heartbeats come."""
    if not heartbeats:
        text = "Not known: no watchdog is configured."
        return [Light("Alertmanager", HealthStatus.UNKNOWN, text, hint="Set `watchdogs`: see docs/configuration.md.")]
    return [_build_heartbeat_light(each, now, alone=len(heartbeats) == 1) for each in heartbeats]


def _build_heartbeat_light(heartbeat: Heartbeat, now: float, *, alone: bool) -> Light:
    name = "Alertmanager" if alone else f"Alertmanager: {heartbeat.name}"
    every = f"one is expected every {format_duration(heartbeat.expect_every)}"
    since = heartbeat.at if heartbeat.at is not None else heartbeat.awaited_since
    if since is not None and now - since > heartbeat.expect_every:
        hint = "Prometheus, Alertmanager, or the way from it to here is broken: see whether both run, and its log."
        return Light(name, HealthStatus.FAILING, f"No heartbeat; {every}.", "last heartbeat", heartbeat.at, hint)
    if heartbeat.at is None:
        return Light(name, HealthStatus.UNKNOWN, f"No heartbeat has come yet; {every}.")
    return Light(name, HealthStatus.HEALTHY, f"Heartbeats come; {every}.", "last heartbeat", heartbeat.at)


def build_intake_light(facts: IntakeFacts, now: float) -> Light:
    """Whether webhooks come, and are accepted."""
    name, proof, at = "Intake", "last webhook", facts.times.accepted_at
    if facts.token_error:
        hint = "Put the token into the file that auth.bearer_token_file names."
        return Light(name, HealthStatus.FAILING, facts.token_error, proof, at, hint)
    refused = {code: when for code, when in facts.answered_at.items() if code >= 400 and now - when < RECENT_SECONDS}
    entries = facts.times.quarantined.entries
    kept = f"{entries} in quarantine." if entries else ""
    if refused:
        code, when = max(refused.items(), key=lambda each: each[1])
        meaning = _REFUSED_503 if code == 503 else _REFUSALS.get(code, "refused")
        is_failing = code == 503 and (at is None or at < when)
        text = f"Refused with {code} {format_duration(now - when)} ago: {meaning}. {kept}".strip()
        hint = "See the relay's log for who sent it." if code in {401, 403} else ""
        status = HealthStatus.FAILING if is_failing else HealthStatus.DEGRADED
        return Light(name, status, text, proof, at, hint, "/quarantine" if entries else "")
    if at is None:
        hint = "Send one: `keypulse-smoke`, or let Alertmanager's watchdog fire."
        return Light(name, HealthStatus.UNKNOWN, f"No webhook has come. {kept}".strip(), hint=hint)
    return Light(name, HealthStatus.HEALTHY, f"Accepts webhooks. {kept}".strip(), proof, at, href="/quarantine" if entries else "")


def build_store_light(facts: StoreFacts, now: float) -> Light:
    """Whether the store can commit, and has space."""
    name, proof = "Store", "committed"
    if facts.error is not None:
        hint = "See the disk or the server of the database; Alertmanager sends again what is refused meanwhile."
        return Light(name, HealthStatus.FAILING, f"Cannot commit: {facts.error}", proof, facts.committed_at, hint)
    size = format_bytes(facts.used_bytes)
    text = f"Commits. Holds {size}" + (f" of {format_bytes(facts.max_bytes)}." if facts.max_bytes else ", without a limit.")
    if facts.committed_at is None:
        return Light(name, HealthStatus.UNKNOWN, "Nothing was committed since the start.")
    if facts.max_bytes and facts.used_bytes > _NEARLY_FULL * facts.max_bytes:
        hint = "See which channel fails: what waits is kept. Or raise retention.max_bytes where the disk has more."
        return Light(name, HealthStatus.DEGRADED, f"Nearly full: {size} of {format_bytes(facts.max_bytes)}.", proof, facts.committed_at, hint)
    if now - facts.committed_at > _STORE_SILENCE:
        return Light(name, HealthStatus.DEGRADED, "Has committed nothing for a while.", proof, facts.committed_at, "See the relay's log.")
    return Light(name, HealthStatus.HEALTHY, text, proof, facts.committed_at)


@dataclass(frozen=True, slots=True)
class SenderFacts:
    """How the sender process answered when it was last asked."""

    answers: bool
    answered_at: float | None
    """When it last answered, unix seconds; None if it never did."""


def build_sender_light(facts: SenderFacts | None) -> Light:
    """Whether the process that sends lives; None if it was not asked yet."""
    name, proof = "Sender", "answered"
    if facts is None:
        return Light(name, HealthStatus.UNKNOWN, "The sender process is being asked.")
    if not facts.answers:
        hint = "The relay starts it again; if it stays away, see the relay's log."
        return Light(name, HealthStatus.FAILING, "The sender process does not answer.", proof, facts.answered_at, hint)
    return Light(name, HealthStatus.HEALTHY, "The sender process answers.", proof, facts.answered_at)


def _build_unknown_light(name: str, facts: PrometheusFacts | None, *, is_configured: bool) -> Light:
    if not is_configured:
        hint = "Set `messages.prometheus_url` to the address of Prometheus."
        return Light(name, HealthStatus.UNKNOWN, "Not known: messages.prometheus_url is not set.", hint=hint)
    if facts is None:
        return Light(name, HealthStatus.UNKNOWN, "Prometheus is being asked.")
    hint = "See whether Prometheus runs, and whether `messages.prometheus_url` is right."
    return Light(name, HealthStatus.UNKNOWN, f"Not known: Prometheus gives no answer: {facts.error}.", hint=hint)


def _is_late(group: RuleGroup, now: float) -> bool:
    return group.evaluated_at is None or now - group.evaluated_at > max(_LATE_EVALUATIONS * group.interval, 60.0)


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
