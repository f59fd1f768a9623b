"""The path of an alert as lights, each with its last proof. Pure.

What is not known is unknown, with what to set; a part that works has a proof with an age.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.relay.console.prometheus_facts import EXPORTER_JOB, PrometheusFacts
from services.relay.console.status import HealthStatus
from services.relay.outbox.overview.webhook_times import WebhookTimes
from services.relay.prometheus_api import RuleGroup
from services.relay.text import format_seconds
from shared.web.time_format import format_rough_duration

OWN_RULE_GROUPS: Final = frozenset({"keypulse_exporter", "kms_keys", "kms_crypto", "keypulse_relay"})
"""The groups of ops/prometheus/rules; where Prometheus has any of them, only these count."""
RECENT_SECONDS: Final = 900.0
"""How long a refused webhook is shown as a problem."""
_STORE_SILENCE: Final = 60.0
"""Seconds without a commit, of which a relay makes some in every minute."""
_NEARLY_FULL: Final = 0.9
_LATE_EVALUATIONS: Final = 3
"""Intervals after which rules count as not evaluated."""
_MIN_LATENESS: Final = 60.0
_REFUSALS: Final = {
    400: "it was no webhook of Alertmanager",
    401: "wrong or no credentials",
    403: "its sender may not send alerts",
    413: "it was too large",
    500: "a defect of the relay",
    503: "it could not be committed; Alertmanager sends it again",
}
_MEBIBYTE: Final = 1024 * 1024


class Verdict(NamedTuple):
    """What is known of a part, in one sentence, and what to do."""

    status: HealthStatus
    text: str
    hint: str = ""
    """Empty where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Light:
    """One part of the path."""

    name: str
    verdict: Verdict
    proof: str = ""
    """What `at` is the time of."""
    at: float | None = None
    """The last proof that it works, unix seconds; None if there is none."""
    href: str = ""
    """The page with more about it; empty if there is none."""
    is_pending: bool = False
    """Whether it will be known in a moment."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A heartbeat that is expected."""

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
    can_commit: bool
    """Whether the store can commit webhooks."""
    times: WebhookTimes
    answered_at: Mapping[int, float]
    """When this relay last answered a webhook with each status."""


@dataclass(frozen=True, slots=True)
class SenderFacts:
    """What the sender process answered when it was last asked."""

    answers: bool
    answered_at: float | None
    """When it last answered, unix seconds; None if it never did."""


def build_exporter_light(facts: PrometheusFacts | None, *, is_configured: bool) -> Light:
    """Whether Prometheus scrapes the exporter."""
    scrapes = facts.scrapes if facts else ()
    at = min((scrape.at for scrape in scrapes if scrape.at is not None), default=None)
    verdict = _judge_exporter(facts, is_configured=is_configured)
    return Light("Exporter", verdict, "scraped", at, is_pending=is_configured and facts is None)


def _judge_exporter(facts: PrometheusFacts | None, *, is_configured: bool) -> Verdict:
    if facts is None or facts.error or not is_configured:
        return _explain_unknown(facts, is_configured=is_configured)
    if not facts.scrapes:
        hint = f"Let Prometheus scrape the exporter, in a job of this name: {EXPORTER_JOB}."
        return Verdict(HealthStatus.UNKNOWN, f"Prometheus has no target of the job {EXPORTER_JOB}.", hint)
    failed, total = [scrape.instance for scrape in facts.scrapes if scrape.at is None], len(facts.scrapes)
    if failed:
        status = HealthStatus.FAILING if len(failed) == total else HealthStatus.DEGRADED
        hint = "See whether it runs, and whether Prometheus reaches it: its page of targets has the error."
        return Verdict(status, f"{len(failed)} of {total} cannot be scraped: {_join(failed)}.", hint)
    return Verdict(HealthStatus.HEALTHY, "Scraped." if total == 1 else f"All {total} are scraped.")


def build_rules_light(facts: PrometheusFacts | None, now: float, *, is_configured: bool) -> Light:
    """Whether Prometheus evaluates the rules."""
    groups = _select_groups(facts)
    at = min((group.evaluated_at for group in groups if group.evaluated_at is not None), default=None)
    verdict = _judge_rules(facts, groups, now, is_configured=is_configured)
    return Light("Rules", verdict, "evaluated", at, is_pending=is_configured and facts is None)


def _judge_rules(
    facts: PrometheusFacts | None, groups: Sequence[RuleGroup], now: float, *, is_configured: bool
) -> Verdict:
    if facts is None or facts.error or not is_configured:
        return _explain_unknown(facts, is_configured=is_configured)
    if not groups:
        hint = "Load ops/prometheus/rules: rule_files in Prometheus's configuration."
        return Verdict(HealthStatus.FAILING, "Prometheus has no alerting rule.", hint)
    late = [group.name for group in groups if _is_late(group, now)]
    if late:
        return Verdict(HealthStatus.FAILING, f"Not evaluated in time: {_join(late)}.", "See Prometheus's log.")
    failing = next((group for group in groups if group.failing_rule), None)
    if failing is not None:
        text = f"{failing.failing_rule} cannot be evaluated: {failing.error}"
        return Verdict(HealthStatus.DEGRADED, text, "Correct this rule; the alert cannot fire.")
    return Verdict(HealthStatus.HEALTHY, f"{_count(sum(group.rules for group in groups), 'rule')} evaluated.")


def build_heartbeat_lights(heartbeats: Sequence[Heartbeat], now: float, *, is_readable: bool) -> list[Light]:
    """Whether the heartbeats of Alertmanager come: a light for each watchdog. `is_readable`: whether the outbox is."""
    if not heartbeats:
        hint = "Set it to an alert that always fires."
        return [Light("Alertmanager", Verdict(HealthStatus.UNKNOWN, "Not known without watchdogs.", hint))]
    return [
        Light(
            "Alertmanager" if len(heartbeats) == 1 else f"Alertmanager ({each.name})",
            _judge_heartbeat(each, now, is_readable=is_readable),
            "heartbeat",
            each.at,
        )
        for each in heartbeats
    ]


def _judge_heartbeat(heartbeat: Heartbeat, now: float, *, is_readable: bool) -> Verdict:
    if not is_readable:
        return Verdict(HealthStatus.UNKNOWN, "Not known: the store cannot be read.")
    every = f"one is expected every {format_seconds(heartbeat.expect_every)}"
    since = heartbeat.at if heartbeat.at is not None else heartbeat.awaited_since
    if since is not None and now - since > heartbeat.expect_every:
        hint = "See whether Prometheus and Alertmanager run, and whether Alertmanager reaches the relay."
        return Verdict(HealthStatus.FAILING, f"No heartbeat comes; {every}.", hint)
    if heartbeat.at is None:
        return Verdict(HealthStatus.UNKNOWN, f"No heartbeat has come yet; {every}.")
    return Verdict(HealthStatus.HEALTHY, f"Heartbeats come; {every}.")


def build_intake_light(facts: IntakeFacts, now: float) -> Light:
    """Whether webhooks come, and are accepted."""
    href = "/quarantine" if facts.times.quarantined else ""
    return Light("Intake", _judge_intake(facts, now), "last webhook", facts.times.accepted_at, href)


def _judge_intake(facts: IntakeFacts, now: float) -> Verdict:
    at, entries = facts.times.accepted_at, facts.times.quarantined
    quarantined = f" {entries} in quarantine." if entries else ""
    if facts.token_error:
        return Verdict(HealthStatus.FAILING, facts.token_error, "Put the token into its file.")
    if not facts.can_commit:
        text = "Webhooks are answered 503, and Alertmanager sends them again."
        return Verdict(HealthStatus.FAILING, text, "Repair the store.")
    refused = [(when, code) for code, when in facts.answered_at.items() if code >= 400 and now - when < RECENT_SECONDS]
    if refused:
        when, code = max(refused)
        is_failing = code >= 500 and (at is None or at < when)
        status = HealthStatus.FAILING if is_failing else HealthStatus.DEGRADED
        why = _REFUSALS.get(code, "refused")
        hint = "The relay's log has the address of the sender." if code in {401, 403} else ""
        return Verdict(
            status, f"One was refused {format_rough_duration(now - when)} ago ({code}): {why}.{quarantined}", hint
        )
    if at is None:
        hint = "Point Alertmanager here; keypulse-relay doctor says what is missing."
        return Verdict(HealthStatus.UNKNOWN, f"No webhook has come yet.{quarantined}", hint)
    return Verdict(HealthStatus.HEALTHY, f"Webhooks are accepted.{quarantined}")


def build_store_light(facts: StoreFacts, now: float) -> Light:
    """Whether the store can commit, and has space."""
    return Light("Store", _judge_store(facts, now), "committed", facts.committed_at)


def _judge_store(facts: StoreFacts, now: float) -> Verdict:
    size = f"{facts.used_bytes / _MEBIBYTE:.0f} MiB"
    if facts.max_bytes:
        size += f" of {facts.max_bytes / _MEBIBYTE:.0f} MiB"
    if facts.error is not None:
        hint = "See the disk, or the server of the database."
        return Verdict(HealthStatus.FAILING, f"Cannot be used: {facts.error}.", hint)
    if facts.max_bytes and facts.used_bytes > _NEARLY_FULL * facts.max_bytes:
        hint = "See which channel fails: what waits is kept. Or raise retention.max_bytes where the disk has more."
        return Verdict(HealthStatus.DEGRADED, f"Nearly full: {size}.", hint)
    if facts.committed_at is None or now - facts.committed_at > _STORE_SILENCE:
        return Verdict(HealthStatus.UNKNOWN, "Nothing was committed for a while.", "See the relay's log.")
    return Verdict(HealthStatus.HEALTHY, f"Commits; holds {size}.")


def build_sender_light(facts: SenderFacts | None) -> Light:
    """Whether the process that sends lives; None if it was not asked yet."""
    if facts is None:
        return Light("Sender", Verdict(HealthStatus.UNKNOWN, "Its process is being asked."), is_pending=True)
    verdict = Verdict(HealthStatus.HEALTHY, "Its process answers.")
    if not facts.answers:
        hint = "The relay starts it again by itself; if that does not help, see the relay's log."
        verdict = Verdict(HealthStatus.FAILING, "Its process does not answer: nothing is sent.", hint)
    return Light("Sender", verdict, "answered", facts.answered_at)


def _explain_unknown(facts: PrometheusFacts | None, *, is_configured: bool) -> Verdict:
    if not is_configured:
        hint = "Set it to the address of Prometheus."
        return Verdict(HealthStatus.UNKNOWN, "Not known without messages.prometheus_url.", hint)
    if facts is None:
        return Verdict(HealthStatus.UNKNOWN, "Prometheus is being asked.")
    hint = "See whether Prometheus runs, and whether messages.prometheus_url is right."
    return Verdict(HealthStatus.UNKNOWN, f"Not known: no answer of Prometheus: {facts.error}.", hint)


def _select_groups(facts: PrometheusFacts | None) -> Sequence[RuleGroup]:
    groups = facts.groups if facts else ()
    return [group for group in groups if group.name in OWN_RULE_GROUPS] or groups


def _is_late(group: RuleGroup, now: float) -> bool:
    limit = max(_LATE_EVALUATIONS * group.interval, _MIN_LATENESS)
    return group.evaluated_at is None or now - group.evaluated_at > limit


def _join(names: Sequence[str]) -> str:
    first = ", ".join(names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
