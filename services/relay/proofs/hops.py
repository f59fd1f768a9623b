"""Which hop lost a proof that did not come: Prometheus and Alertmanager are asked, where their addresses are known.

Prometheus still has what it saw in the interval of the proof. Alertmanager forgets an alert that is over, so that its
silences, its inhibitions and its routes say what became of it. A silence counts by its times, also one that has ended.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from services.relay.apis import AlertmanagerClient, ApiError, FoundSilence, PrometheusClient, Sample
from services.relay.intake.routing import PROOF_ALERT, parse_matcher, quote_value
from services.relay.now.lights import EXPORTER_JOB, REFUSALS
from services.relay.outbox.proofs import Hop
from services.relay.routes.alertmanager import (
    RoutingTree,
    TreeError,
    find_inhibiting,
    list_chosen,
    parse_tree,
    route_alert,
)
from shared.process.concurrency import run_large
from shared.web.time_format import format_utc_minute

_TIMEOUT: Final = 8.0
"""Seconds for all answers of Prometheus, and for those of each Alertmanager."""
_METRIC: Final = "keypulse_path_proof_started_timestamp_seconds"
_MAX_ALERTS: Final = 20
_HELD_SECONDS: Final = 300.0
"""How long Alertmanager may have a proof: it is raised for two minutes, and seen a minute or two later."""

Labels = Mapping[str, str]


class LostProof(NamedTuple):
    hop: Hop
    error: str
    """Why, without secrets."""


class _Interval(NamedTuple):
    """Of a proof; unix seconds."""

    start: float
    end: float


class HopFinder:
    """Asks in bounded time.

    Args:
        prometheus: None where its address is not known.
        peers: every Alertmanager that sends to this relay.
        webhook_times: when this relay last answered a webhook with each HTTP status, unix seconds.
    """

    def __init__(
        self,
        prometheus: PrometheusClient | None,
        peers: Sequence[AlertmanagerClient],
        webhook_times: Mapping[int, float],
    ) -> None:
        self._prometheus = prometheus
        self._peers = peers
        self._webhook_times = webhook_times

    async def find(self, start: float, every: float, labels: Labels) -> LostProof:
        """Where the proof was lost of an interval that is over.

        Args:
            start: of the interval, unix seconds.
            every: its length in seconds.
            labels: of a proof, as far as they are known; Prometheus may know better.
        """
        interval = _Interval(start, start + every)
        alerts: list[Labels] = [{"alertname": PROOF_ALERT, "severity": "none", **labels}]
        if self._prometheus is not None:
            found = await _ask_prometheus(self._prometheus, interval, labels.get("env", ""))
            if isinstance(found, LostProof):
                return found
            alerts = found
        if self._peers:
            lost = await self._ask_alertmanagers(alerts, interval)
            if lost is not None:
                return lost
        return self._judge_webhooks(interval)

    async def _ask_alertmanagers(self, alerts: Sequence[Labels], interval: _Interval) -> LostProof | None:
        # One after the other: each reply may have megabytes.
        reasons = [await _ask_alertmanager(peer, alerts, interval) for peer in self._peers]
        answered = [reason for reason, has_answered in reasons if has_answered]
        if answered and None in answered:
            return None
        return LostProof(Hop.ALERTMANAGER, next(iter(answered or [f"no answer: {reasons[0][0]}"])) or "")

    def _judge_webhooks(self, interval: _Interval) -> LostProof:
        missing = [] if self._prometheus else ["messages.prometheus_url"]
        missing += [] if self._peers else ["alertmanager.urls"]
        refused_at, code = max(
            ((at, code) for code, at in self._webhook_times.items() if code > 400 and at >= interval.start),
            default=(0.0, 0),
        )
        refusal = f"this relay refused webhooks ({code}): {REFUSALS.get(code, 'refused')}"
        accepted_at = max((at for code, at in self._webhook_times.items() if code < 300), default=0.0)
        # Where somebody says that the proof got as far as here; elsewhere what was refused may be a stray request.
        if code and (not missing or refused_at > accepted_at):
            return LostProof(Hop.WEBHOOK, refusal)
        if missing:
            perhaps = f"perhaps {refusal}; " if code else ""
            return LostProof(Hop.UNKNOWN, f"{perhaps}set {' and '.join(missing)} so that the hop can be named")
        return LostProof(Hop.WEBHOOK, "Alertmanager had it, and its webhook did not come; see its log")


async def _ask_prometheus(client: PrometheusClient, interval: _Interval, env: str) -> LostProof | list[Labels]:
    """Where it was lost by then; else the labels of the alerts that fired. Proofs of another `env` are others'."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await _follow_to_alertmanager(client, interval, env)
    except ApiError as error:
        return LostProof(Hop.PROMETHEUS, f"Prometheus gives no answer: {error}")
    except TimeoutError:
        return LostProof(Hop.PROMETHEUS, f"Prometheus gives no answer within {_TIMEOUT:g} s")
    except ValueError:
        return LostProof(Hop.PROMETHEUS, "Prometheus gives no answer that can be read")


async def _follow_to_alertmanager(client: PrometheusClient, interval: _Interval, env: str) -> LostProof | list[Labels]:
    async def read(expression: str) -> list[Sample]:
        # Not by a selector: an `env` that Prometheus adds as it sends alerts stands in no sample.
        samples = await client.read_instant(expression, end)
        return [each for each in samples if not env or each.labels.get("env", env) == env]

    end, window = interval.end, f"[{(interval.end - interval.start) * 1000:.0f}ms]"
    fired = f'max_over_time(ALERTS{{alertname="{PROOF_ALERT}", alertstate="firing"}}{window})'
    if alerts := await read(f"topk by (env) ({_MAX_ALERTS}, {fired})"):
        if not await _knows_alertmanager(client):
            return LostProof(Hop.PROMETHEUS, "Prometheus knows no Alertmanager")
        return [{key: value for key, value in each.labels.items() if key != "alertstate"} for each in alerts]
    if not await read(f"max by (env) (max_over_time({_METRIC}{window})) > 0"):
        up: dict[str, float] = {}
        for sample in await read(f"max by (job, env) (last_over_time(up{window}))"):
            job = sample.labels.get("job", "")
            up[job] = max(sample.value, up.get(job, 0.0))
        return _judge_scrapes(up)
    if await client.has_rule(PROOF_ALERT):
        return LostProof(Hop.PROMETHEUS, f"the rule {PROOF_ALERT} did not fire; Prometheus's page of rules says why")
    return LostProof(Hop.PROMETHEUS, f"Prometheus has no rule {PROOF_ALERT}: load ops/prometheus/rules")


async def _knows_alertmanager(client: PrometheusClient) -> bool:
    """What answers for several Prometheus, such as Thanos, cannot say. Raises ApiError."""
    try:
        return bool(await client.list_alertmanagers())
    except ApiError as error:
        if error.status != 404:
            raise
        return True


def _judge_scrapes(up: Mapping[str, float]) -> LostProof:
    """Why the exporter's proof was not seen; `up` is that of each job."""
    if not up:
        return LostProof(Hop.PROMETHEUS, "Prometheus scraped nothing then")
    if EXPORTER_JOB not in up:
        return LostProof(Hop.EXPORTER, f"Prometheus has no target of the job {EXPORTER_JOB}")
    if not up[EXPORTER_JOB]:
        return LostProof(Hop.EXPORTER, "Prometheus cannot scrape it")
    return LostProof(Hop.EXPORTER, "it began no proof: compare its `proof.every` with the relay's")


async def _ask_alertmanager(
    peer: AlertmanagerClient, alerts: Sequence[Labels], interval: _Interval
) -> tuple[str | None, bool]:
    """Why it sends none of these alerts here, None if it does as far as it says; and whether it has answered at all."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            configuration, silences = await peer.read_configuration(), await peer.list_silences()
            others = (await peer.read_state()).labels_by_fingerprint.values()

        def judge() -> list[str | None]:
            tree = parse_tree(configuration)
            return [_explain(each, interval, silences, tree, others) for each in alerts]

        reasons = await run_large(judge)
    except TimeoutError:
        return f"{peer.url}: no answer within {_TIMEOUT:g} s", False
    except ApiError as error:
        return f"{peer.url}: {error}", False
    except TreeError:  # it can be asked, and how it routes is not known
        return None, True
    return (None if None in reasons else reasons[0]), True


def _explain(
    labels: Labels,
    interval: _Interval,
    silences: Sequence[FoundSilence],
    tree: RoutingTree,
    others: Collection[Labels],
) -> str | None:
    """Why Alertmanager sends an alert not here; None if it does. Raises TreeError."""
    silence = next((each for each in silences if _is_silenced(each, labels, interval)), None)
    if silence is not None:
        return f"silenced by {silence.id} until {format_utc_minute(silence.ends_at.timestamp())}"
    inhibiting = find_inhibiting(tree, labels, others)
    if inhibiting is not None:
        return f"inhibited by {inhibiting.get('alertname', 'another alert')}"
    receivers = {route.receiver for route in list_chosen(route_alert(tree, labels))}
    if receivers.isdisjoint(tree.token_senders):
        names = ", ".join(sorted(receivers))
        return f"{PROOF_ALERT} goes to the receiver {names}, which has no webhook with a token"
    return None


def _is_silenced(silence: FoundSilence, labels: Labels, interval: _Interval) -> bool:
    starts_at, ends_at = silence.starts_at.timestamp(), silence.ends_at.timestamp()
    if ends_at < interval.start or starts_at > min(interval.start + _HELD_SECONDS, interval.end):
        return False
    try:
        texts = (f"{each.name}{each.operator}{quote_value(each.value)}" for each in silence.matchers)
        return all(parse_matcher(text).matches(labels) for text in texts)
    except ValueError:  # a name or an expression that only Alertmanager can read
        return False
