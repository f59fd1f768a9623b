"""The path of an alert and the channels as lights, each with its last proof, and with what to do.

What is not known is unknown, with what to set. Prometheus and the sender process are asked in the background while
somebody looks, at a bounded pace: no page waits for them, and an answer from long ago counts as none.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from services.relay.apis import ApiError, PrometheusClient, RuleGroup
from services.relay.channel_health.checks import advise_on
from services.relay.channels.port import SendReason
from services.relay.config import RelaySettings
from services.relay.console.frame import HealthStatus
from services.relay.delivery.attempt import OpenSender, RemoteSender, Sender, SenderSettings
from services.relay.intake.routing import WatchdogSettings
from services.relay.metrics import Metrics
from services.relay.now.overview import BreakerState, ChannelOverview, Overview, WebhookTimes
from services.relay.outbox.proofs import Hop
from services.relay.outbox.retention import ByteLimit
from services.relay.outbox.store import Store
from services.relay.proofs.queries import STEPS, Standing, format_hop
from services.relay.text import format_seconds
from shared.process.concurrency import run_beside
from shared.process.logs import describe_exception
from shared.web.time_format import format_rough_duration

T = TypeVar("T")
INTERVAL: Final = 15.0
"""Seconds from one question to the next, at least."""
_MAX_AGE: Final = 4 * INTERVAL
"""Seconds for which an answer counts: some questions of a person who looks may take their time, or fail."""

log = structlog.get_logger(__name__)


class BackgroundWatch(Generic[T]):
    """One question, asked while `run` runs.

    Args:
        ask: gives the answer, in bounded time.
        on_answer: called after each.
        interval: seconds from one question to the next, at least.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], on_answer: Callable[[], None], interval: float = INTERVAL
    ) -> None:
        self.answer: T | None = None
        """The last one, of whatever age; None before the first."""
        self._answered_at = 0.0
        self._ask = ask
        self._on_answer = on_answer
        self._interval = interval
        self._requested = asyncio.Event()

    def read(self) -> T | None:
        """The last answer, None if it is too old; it is asked again when its time has come."""
        self._requested.set()
        is_current = asyncio.get_running_loop().time() - self._answered_at <= _MAX_AGE
        return self.answer if is_current else None

    async def run(self) -> None:
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                self.answer = await self._ask()
                self._answered_at = asyncio.get_running_loop().time()
            except Exception as error:  # noqa: BLE001  # it is asked again
                log.error("unexpected error in a watch of the console", **describe_exception(error))  # noqa: TRY400
            self._on_answer()
            await asyncio.sleep(self._interval)


EXPORTER_JOB: Final = "keypulse-exporter"
"""The job that scrapes the exporter; our rules and dashboards name it, too."""
_SCRAPES: Final = f'timestamp(up{{job="{EXPORTER_JOB}"}}) * up{{job="{EXPORTER_JOB}"}} or vector(time())'
"""When each exporter was last scraped, 0 for one that cannot be; and, without labels, Prometheus's own time."""
_TIMEOUT: Final = 8.0


@dataclass(frozen=True, slots=True)
class Scrape:
    instance: str
    at: float | None
    """When, unix seconds by the relay's clock; None if it failed."""


@dataclass(frozen=True, slots=True)
class PrometheusFacts:
    """An answer of Prometheus, or why there is none."""

    error: str = ""
    scrapes: Sequence[Scrape] = ()
    groups: Sequence[RuleGroup] = ()
    """Those that have alerting rules; `evaluated_at` is by the relay's clock."""


async def ask_prometheus(client: PrometheusClient, clock: Callable[[], float]) -> PrometheusFacts:
    """Ask it both, in 8 s at most."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            samples, groups = await asyncio.gather(client.read_instant(_SCRAPES), client.list_rule_groups())
    except ApiError as error:
        return PrometheusFacts(error=str(error))
    except TimeoutError:
        return PrometheusFacts(error=f"no answer within {_TIMEOUT:g} s")
    # Ages are what counts: Prometheus's clock may differ from that of the relay.
    offset = clock() - max((sample.at for sample in samples), default=clock())
    return PrometheusFacts(
        scrapes=[
            Scrape(sample.labels.get("instance", "?"), sample.value + offset if sample.value else None)
            for sample in samples
            if sample.labels
        ],
        groups=[
            replace(group, evaluated_at=None if group.evaluated_at is None else group.evaluated_at + offset)
            for group in groups
        ],
    )


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
REFUSALS: Final = {
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
class SenderFacts:
    """What the sender process answered when it was last asked."""

    answers: bool
    answered_at: float | None
    """When it last answered, unix seconds; None if it never did."""


def build_prometheus_lights(facts: PrometheusFacts | None, now: float, *, is_configured: bool) -> list[Light]:
    """Whether Prometheus scrapes the exporter and evaluates the rules, by its answer."""
    unknown, answer = _explain_unknown(facts, is_configured=is_configured), facts or PrometheusFacts()
    groups = [group for group in answer.groups if group.name in OWN_RULE_GROUPS] or answer.groups
    scraped_at = min((scrape.at for scrape in answer.scrapes if scrape.at is not None), default=None)
    evaluated_at = min((group.evaluated_at for group in groups if group.evaluated_at is not None), default=None)
    is_pending = is_configured and facts is None
    return [
        Light("Exporter", unknown or _judge_scrapes(answer.scrapes), "scraped", scraped_at, is_pending=is_pending),
        Light("Rules", unknown or _judge_rules(groups, now), "evaluated", evaluated_at, is_pending=is_pending),
    ]


def _explain_unknown(facts: PrometheusFacts | None, *, is_configured: bool) -> Verdict | None:
    if not is_configured:
        hint = "Set it to the address of Prometheus."
        return Verdict(HealthStatus.UNKNOWN, "Not known without messages.prometheus_url.", hint)
    if facts is None:
        return Verdict(HealthStatus.UNKNOWN, "Prometheus is being asked.")
    if facts.error:
        hint = "See whether Prometheus runs, and whether messages.prometheus_url is right."
        return Verdict(HealthStatus.UNKNOWN, f"Not known: no answer of Prometheus: {facts.error}.", hint)
    return None


def _judge_scrapes(scrapes: Sequence[Scrape]) -> Verdict:
    if not scrapes:
        hint = f"Let Prometheus scrape the exporter, in a job of this name: {EXPORTER_JOB}."
        return Verdict(HealthStatus.UNKNOWN, f"Prometheus has no target of the job {EXPORTER_JOB}.", hint)
    failed, total = [scrape.instance for scrape in scrapes if scrape.at is None], len(scrapes)
    if failed:
        status = HealthStatus.FAILING if len(failed) == total else HealthStatus.DEGRADED
        hint = "See whether it runs, and whether Prometheus reaches it: its page of targets has the error."
        return Verdict(status, f"{len(failed)} of {total} cannot be scraped: {_join(failed)}.", hint)
    return Verdict(HealthStatus.HEALTHY, "Scraped." if total == 1 else f"All {total} are scraped.")


def _judge_rules(groups: Sequence[RuleGroup], now: float) -> Verdict:
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
    rules = sum(group.rules for group in groups)
    return Verdict(HealthStatus.HEALTHY, f"{rules} rule{'' if rules == 1 else 's'} evaluated.")


def build_heartbeat_lights(
    watchdogs: Sequence[WatchdogSettings], overview: Overview, now: float, *, is_readable: bool
) -> list[Light]:
    """Whether the heartbeats of Alertmanager come: a light for each watchdog. `is_readable`: whether the outbox is."""
    if not watchdogs:
        hint = "Set it to an alert that always fires."
        return [Light("Alertmanager", Verdict(HealthStatus.UNKNOWN, "Not known without watchdogs.", hint))]
    lights = []
    for watchdog in watchdogs:
        at, awaited_since = (beats.get(watchdog.name) for beats in (overview.heartbeats, overview.heartbeats_awaited))
        verdict = Verdict(HealthStatus.UNKNOWN, "Not known: the store cannot be read.")
        if is_readable:
            verdict = _judge_heartbeat(watchdog.expect_every, at, awaited_since, now)
        name = "Alertmanager" if len(watchdogs) == 1 else f"Alertmanager ({watchdog.name})"
        lights.append(Light(name, verdict, "heartbeat", at))
    return lights


def _judge_heartbeat(expect_every: float, at: float | None, awaited_since: float | None, now: float) -> Verdict:
    every = f"one is expected every {format_seconds(expect_every)}"
    since = at if at is not None else awaited_since
    if since is not None and now - since > expect_every:
        hint = "See whether Prometheus and Alertmanager run, and whether Alertmanager reaches the relay."
        return Verdict(HealthStatus.FAILING, f"No heartbeat comes; {every}.", hint)
    if at is None:
        return Verdict(HealthStatus.UNKNOWN, f"No heartbeat has come yet; {every}.")
    return Verdict(HealthStatus.HEALTHY, f"Heartbeats come; {every}.")


def build_intake_light(
    times: WebhookTimes, answered_at: Mapping[int, float], now: float, *, token_error: str | None, can_commit: bool
) -> Light:
    """Whether webhooks come, and are accepted.

    Args:
        times: of the webhooks in the outbox.
        answered_at: when this relay last answered a webhook with each status.
        now: unix seconds.
        token_error: why nobody may send, or None.
        can_commit: whether the store can commit webhooks.
    """
    verdict = _judge_answers(times, answered_at, now)
    if token_error:
        verdict = Verdict(HealthStatus.FAILING, token_error, "Put the token into its file.")
    elif not can_commit:
        text = "Webhooks are answered 503, and Alertmanager sends them again."
        verdict = Verdict(HealthStatus.FAILING, text, "Repair the store.")
    return Light("Intake", verdict, "last webhook", times.accepted_at, "/quarantine" if times.quarantined else "")


def _judge_answers(times: WebhookTimes, answered_at: Mapping[int, float], now: float) -> Verdict:
    at, quarantined = times.accepted_at, f" {times.quarantined} in quarantine." if times.quarantined else ""
    refused = [(when, code) for code, when in answered_at.items() if code >= 400 and now - when < RECENT_SECONDS]
    if refused:
        when, code = max(refused)
        is_failing = code >= 500 and (at is None or at < when)
        status = HealthStatus.FAILING if is_failing else HealthStatus.DEGRADED
        why = REFUSALS.get(code, "refused")
        hint = "The relay's log has the address of the sender." if code in {401, 403} else ""
        return Verdict(
            status, f"One was refused {format_rough_duration(now - when)} ago ({code}): {why}.{quarantined}", hint
        )
    if at is None:
        hint = "Point Alertmanager here; keypulse-relay doctor says what is missing."
        return Verdict(HealthStatus.UNKNOWN, f"No webhook has come yet.{quarantined}", hint)
    return Verdict(HealthStatus.HEALTHY, f"Webhooks are accepted.{quarantined}")


def build_store_light(error: str | None, committed_at: float | None, used: int, limit: int, now: float) -> Light:
    """Whether the store can commit, and has space: of `limit` bytes, where 0 is no limit, it uses `used`."""
    size = f"{used / _MEBIBYTE:.0f} MiB" + (f" of {limit / _MEBIBYTE:.0f} MiB" if limit else "")
    verdict = Verdict(HealthStatus.HEALTHY, f"Commits; holds {size}.")
    if error is not None:
        hint = "See the disk, or the server of the database."
        verdict = Verdict(HealthStatus.FAILING, f"Cannot be used: {error}.", hint)
    elif limit and used > _NEARLY_FULL * limit:
        hint = "See which channel fails: what waits is kept. Or raise retention.max_bytes where the disk has more."
        verdict = Verdict(HealthStatus.DEGRADED, f"Nearly full: {size}.", hint)
    elif committed_at is None or now - committed_at > _STORE_SILENCE:
        verdict = Verdict(HealthStatus.UNKNOWN, "Nothing was committed for a while.", "See the relay's log.")
    return Light("Store", verdict, "committed", committed_at)


def build_sender_light(facts: SenderFacts | None) -> Light:
    """Whether the process that sends lives; None if it was not asked yet."""
    if facts is None:
        return Light("Sender", Verdict(HealthStatus.UNKNOWN, "Its process is being asked."), is_pending=True)
    verdict = Verdict(HealthStatus.HEALTHY, "Its process answers.")
    if not facts.answers:
        hint = "The relay starts it again by itself; if that does not help, see the relay's log."
        verdict = Verdict(HealthStatus.FAILING, "Its process does not answer: nothing is sent.", hint)
    return Light("Sender", verdict, "answered", facts.answered_at)


def build_proof_light(standings: Sequence[Standing], now: float, every: float, *, is_readable: bool) -> Light:
    """Whether each channel is proven, from the exporter on. `is_readable`: whether the outbox is."""
    verdict = Verdict(HealthStatus.UNKNOWN, "Not known: the store cannot be read.")
    if is_readable:
        verdict = _judge_proofs(standings, now, every)
    proven_at = min((each.proven_at for each in standings if each.proven_at is not None), default=None)
    return Light("Proof", verdict, "the oldest", proven_at, "/proof")


def _judge_proofs(standings: Sequence[Standing], now: float, every: float) -> Verdict:
    by_state: dict[bool | None, list[Standing]] = {True: [], False: [], None: []}
    for each in standings:
        by_state[each.is_ok(now, every)].append(each)
    if lost := by_state[False]:
        status = HealthStatus.DEGRADED if by_state[True] else HealthStatus.FAILING
        names = [f"{each.channel} (lost {format_hop(each.hop)})" if each.hop else each.channel for each in lost]
        hop = next((each.hop for each in lost if each.hop), Hop.UNKNOWN)
        return Verdict(status, f"Not proven for two intervals: {_join(names)}.", STEPS[Hop(hop)])
    if partly := [each.channel for each in by_state[True] if each.error]:
        text = f"Proven, and the last proof has an error: {_join(partly)}."
        return Verdict(HealthStatus.DEGRADED, text, "See what it says on the page of the proofs.")
    if not by_state[True]:
        return Verdict(HealthStatus.UNKNOWN, f"No proof has come yet; one is expected every {format_seconds(every)}.")
    missing = f" Not yet: {_join([each.channel for each in by_state[None]])}." if by_state[None] else ""
    return Verdict(HealthStatus.HEALTHY, f"{len(by_state[True])} of {len(standings)} channels are proven.{missing}")


def _is_late(group: RuleGroup, now: float) -> bool:
    limit = max(_LATE_EVALUATIONS * group.interval, _MIN_LATENESS)
    return group.evaluated_at is None or now - group.evaluated_at > limit


def _join(names: Sequence[str]) -> str:
    first = ", ".join(names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


LATE_SECONDS: Final = 300.0
"""How long a delivery may wait before its channel counts as degraded; the alert RelayOutboxStuck comes later."""
_REASONS: Final = {
    SendReason.TIMEOUT: "no answer in time",
    SendReason.CONNECTION: "no connection",
    SendReason.RATE_LIMITED: "too many messages for its provider",
    SendReason.SERVER_ERROR: "an error of its provider",
    SendReason.REJECTED: "its provider rejected the message",
    SendReason.UNAUTHORIZED: "its credentials are refused",
    SendReason.MISCONFIGURED: "its destination does not exist, or the relay may not write there",
    SendReason.INTERNAL: "a defect of the relay",
}


def build_channel_light(channel: ChannelOverview, now: float) -> Light:
    verdict, href = _judge_sending(channel, now) or _judge_others(channel, now), f"/channels/{channel.name}"
    test = channel.last_test
    if test is not None and test.problem is None and not _was_delivered_after(channel, test.started_at):
        return Light(channel.name, verdict, "last test arrived", test.started_at, href)
    at = channel.last_success.finished_at if channel.last_success else None
    return Light(channel.name, verdict, "last success", at, href)


def _judge_sending(channel: ChannelOverview, now: float) -> Verdict | None:
    """What keeps it from sending; None if nothing does."""
    why, hint = _describe_reason(channel.reason), _capitalise(advise_on(channel.reason))
    failures = "the last attempt failed" if channel.failures == 1 else f"{channel.failures} attempts in a row failed"
    if channel.is_down:
        return Verdict(HealthStatus.FAILING, f"Down: {why}.", hint)
    if channel.breaker is not BreakerState.CLOSED:
        return Verdict(HealthStatus.FAILING, f"Paused: {failures}: {why}.", hint)
    if channel.retry_after_until is not None:
        left = format_rough_duration(max(channel.retry_after_until - now, 1.0))
        return Verdict(HealthStatus.DEGRADED, f"Its provider asked to wait; {left} left.")
    if channel.failures:
        return Verdict(HealthStatus.DEGRADED, f"{failures.capitalize()}: {why}.", hint)
    return None


def _judge_others(channel: ChannelOverview, now: float) -> Verdict:
    check, test = channel.last_check, channel.last_test
    for name, each in (("test", test), ("check", check)):
        if each is not None and each.problem is not None and not _was_delivered_after(channel, each.started_at):
            text = f"Its {name} failed: {each.problem}."
            return Verdict(HealthStatus.DEGRADED, text, _capitalise(each.hint or ""))
    if channel.dead:
        # Whatever was delivered since: nobody was told of it, as RelayDeadLetters says, too.
        dead = f"{channel.dead} dead letter{'' if channel.dead == 1 else 's'}"
        failure = channel.last_failure
        why = f"; the last failure: {_describe_reason(failure.reason)}" if failure else ""
        return Verdict(HealthStatus.DEGRADED, f"{dead}{why}.", "Correct the cause, then retry them.")
    if channel.oldest_accepted_at is not None and now - channel.oldest_accepted_at > LATE_SECONDS:
        return Verdict(HealthStatus.DEGRADED, "A delivery is late.", "See what waits, and why its attempts failed.")
    if channel.last_success is None and check is None and test is None:
        return Verdict(HealthStatus.UNKNOWN, "Nothing was sent yet.", "Send a test message.")
    return Verdict(HealthStatus.HEALTHY, "Up.")


def _was_delivered_after(channel: ChannelOverview, at: float) -> bool:
    success = channel.last_success
    return success is not None and success.finished_at is not None and success.finished_at > at


def _describe_reason(reason: str | None) -> str:
    return _REASONS[SendReason(reason)] if reason in _REASONS else reason or "the reason is not known"


def _capitalise(hint: str) -> str:
    return f"{hint[0].upper()}{hint[1:]}." if hint else ""


class PathWatch:
    """Watches the path while `run` runs.

    Args:
        settings: the configuration.
        store: the outbox.
        metrics: knows when webhooks were answered.
        byte_limit: of the outbox.
        describe_token: why nobody may send alerts, or None.
        on_answer: called when Prometheus or the sender process has answered.
    """

    def __init__(
        self,
        settings: RelaySettings,
        store: Store,
        metrics: Metrics,
        byte_limit: ByteLimit,
        describe_token: Callable[[], str | None],
        on_answer: Callable[[], None],
    ) -> None:
        self._watchdogs = settings.watchdogs
        self._proof_every = settings.proof.every
        self._store = store
        self._metrics = metrics
        self._byte_limit = byte_limit
        self._describe_token = describe_token
        messages = settings.messages
        self._prometheus: PrometheusClient | None = None
        if messages.prometheus_url is not None:
            self._prometheus = PrometheusClient(
                messages.prometheus_url, messages.prometheus_token_file, messages.egress
            )
        self._sender: Sender | None = None
        self._prometheus_watch = BackgroundWatch(self._ask_prometheus, on_answer)
        self._sender_watch = BackgroundWatch(self._ask_sender, on_answer)

    def watch_sender(self, open_sender: OpenSender) -> OpenSender:
        """The same, and what it opens is watched."""

        @asynccontextmanager
        async def open_watched(settings: SenderSettings) -> AsyncIterator[Sender]:
            async with open_sender(settings) as self._sender:
                yield self._sender

        return open_watched

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Asks while the body runs, and somebody looks."""
        try:
            async with run_beside(self._prometheus_watch.run(), self._sender_watch.run()):
                yield
        finally:
            if self._prometheus is not None:
                await self._prometheus.close()

    def build_lights(self, overview: Overview, now: float, read_error: str | None) -> list[Light]:
        """The lights of the path, from the exporter to the sender, and of its proof. Somebody looks at them.

        Args:
            overview: of the outbox.
            now: unix seconds by the database's clock.
            read_error: why the outbox cannot be read now, so that `overview` is old; None if it can.
        """
        is_configured = self._prometheus is not None
        facts = self._prometheus_watch.read() if is_configured else None
        error = self._store.error or read_error
        return [
            *build_prometheus_lights(facts, now, is_configured=is_configured),
            *build_heartbeat_lights(self._watchdogs, overview, now, is_readable=read_error is None),
            build_intake_light(
                overview.webhooks,
                self._metrics.webhook_times,
                now,
                token_error=self._describe_token(),
                can_commit=error is None,
            ),
            build_store_light(
                error, self._store.committed_at, self._byte_limit.used_bytes, self._byte_limit.max_bytes, now
            ),
            build_sender_light(self._sender_watch.read()),
            *(
                [build_proof_light(overview.proofs, now, self._proof_every, is_readable=read_error is None)]
                if self._proof_every
                else []
            ),
        ]

    async def _ask_prometheus(self) -> PrometheusFacts | None:
        return await ask_prometheus(self._prometheus, self._store.clock) if self._prometheus else None

    async def _ask_sender(self) -> SenderFacts:
        answers = await self._sender.ping() if isinstance(self._sender, RemoteSender) else self._sender is not None
        if answers:
            return SenderFacts(answers, self._store.clock())
        before = self._sender_watch.answer
        return SenderFacts(answers, before.answered_at if before else None)
