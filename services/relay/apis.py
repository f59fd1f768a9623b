"""The APIs of other programs that the relay reads: Alertmanager's, Prometheus's, the exporter's history of failures.

Each answer is bounded, and nothing is asked of another server: a redirect is an error.
https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
https://prometheus.io/docs/prometheus/latest/querying/api/
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

import msgspec

from services.relay.channels.port import SendError
from services.relay.http import HttpSession, translate_connection_errors
from services.relay.model import Alert
from shared.check import CheckError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.net.egress import EgressSettings
from shared.net.http_connector import read_bounded
from shared.process.concurrency import run_in_thread_if_large, run_large

_LARGE_BYTES: Final = 1024 * 1024
"""Bytes from which on one answer is decoded after the other, and the memory given back."""
T = TypeVar("T")
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class ApiError(Exception):
    """A program does not do what it was asked for; the text says why, without secrets.

    Args:
        text: why.
        is_refusal: whether it answered that it will not, so that it has certainly done nothing.
        status: of HTTP, if there was an answer.
    """

    def __init__(self, text: str, *, is_refusal: bool = False, status: int | None = None) -> None:
        super().__init__(text)
        self.is_refusal = is_refusal
        self.status = status


class QueryRefusedError(ApiError):
    """Prometheus cannot evaluate the expression."""


class _Api:
    """One program; `token_file` is sent as Bearer, and read again when it changes."""

    name: ClassVar[str]
    api: ClassVar[str]
    max_bytes: ClassVar[int]
    timeout: ClassVar[float] = 10.0
    """Seconds for one answer."""

    def __init__(self, url: str, token_file: Path | None = None, egress: EgressSettings | None = None) -> None:
        self.url = url
        self._token = SecretFile(token_file) if token_file else None
        self._session = HttpSession(self.name, egress=egress)

    async def close(self) -> None:
        await self._session.close()

    async def _read(self, decode: Callable[[bytes], T], path: str, *, method: str = "GET", **options: Any) -> T:
        """What `decode` makes of the body of a 200; `options` are those of aiohttp. Raises ApiError."""
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._request(method, path, **options)
            work = partial(decode, body)
            return await (run_large(work) if len(body) > _LARGE_BYTES else run_in_thread_if_large(len(body), work))
        except TimeoutError:
            raise ApiError(f"no answer within {self.timeout:g} s") from None
        except (UntrustedJsonError, OverflowError):  # the latter for a time near the year 1 or 9999
            raise ApiError(f"its answer is not that of {self.api}") from None

    async def _request(self, method: str, path: str, **options: Any) -> bytes:
        try:
            headers = {"Authorization": f"Bearer {self._token.read_value()}"} if self._token else {}
            with translate_connection_errors(self.name):
                async with self._session.open().request(method, self.url + path, headers=headers, **options) as answer:
                    self._check_status(answer.status)
                    excess = ApiError(f"its answer is over {self.max_bytes} bytes")
                    return await read_bounded(answer, self.max_bytes, excess)
        except SendError as error:
            raise ApiError(str(error), is_refusal=not error.maybe_arrived) from None
        except SecretUnreadableError as error:
            raise ApiError(str(error), is_refusal=True) from None

    def _check_status(self, status: int) -> None:
        """Raises ApiError for any status but 200."""
        if status != 200:
            raise ApiError(f"it answered HTTP {status}", is_refusal=status < 500, status=status)


def _create_decoder(kind: type[T]) -> Callable[[bytes], T]:
    return partial(decode_json, msgspec.json.Decoder(kind))


@dataclass(frozen=True, slots=True)
class ActiveAlert:
    """An alert that fires and is neither silenced nor inhibited."""

    starts_at: datetime
    receivers: frozenset[str]


@dataclass(frozen=True, slots=True)
class AlertmanagerState:
    started_at: float
    """When it started, in unix seconds by its clock."""
    labels_by_fingerprint: Mapping[str, Mapping[str, str]]
    """The labels of every alert that is not resolved, muted or not, by fingerprint."""
    active_by_fingerprint: Mapping[str, ActiveAlert]
    """Those of them that are not muted, by fingerprint."""


@dataclass(frozen=True, slots=True)
class NewSilence:
    """A silence of the alerts that have exactly these values of labels."""

    labels: Mapping[str, str]
    ends_at: float
    """Unix seconds."""
    created_by: str
    comment: str


class _State(msgspec.Struct, gc=False):
    state: str  # of an alert active, suppressed, unprocessed; of a silence expired, active, pending


class SilenceMatcher(msgspec.Struct, rename="camel", gc=False):
    name: str
    value: str
    is_regex: bool
    is_equal: bool = True

    @property
    def operator(self) -> str:
        return ("=~" if self.is_equal else "!~") if self.is_regex else ("=" if self.is_equal else "!=")


class FoundSilence(msgspec.Struct, rename="camel", gc=False):
    id: str
    comment: str
    created_by: str
    starts_at: _Moment
    ends_at: _Moment
    """When it ends, or ended."""
    matchers: list[SilenceMatcher]
    status: _State

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether it mutes every alert that has these labels, as far as exact values say."""
        return all(each.operator == "=" and labels.get(each.name, "") == each.value for each in self.matchers)


class _CreatedSilence(msgspec.Struct, rename={"silence_id": "silenceID"}):
    silence_id: str


class _ServerStatus(msgspec.Struct):
    uptime: _Moment  # in spite of its name the moment of its start


class _Configuration(msgspec.Struct):
    original: str


class _ConfiguredStatus(msgspec.Struct):
    config: _Configuration


class _Receiver(msgspec.Struct, gc=False):
    name: str


class _ListedAlert(msgspec.Struct, rename="camel", gc=False):
    fingerprint: str
    labels: dict[str, str]
    starts_at: _Moment
    receivers: list[_Receiver]
    status: _State


class _UpdatedAlert(msgspec.Struct, rename="camel", gc=False):
    annotations: dict[str, str]
    updated_at: _Moment


_decode_configuration = _create_decoder(_ConfiguredStatus)
_decode_status = _create_decoder(_ServerStatus)
_decode_silences = _create_decoder(list[FoundSilence])
_decode_created = _create_decoder(_CreatedSilence)
_decode_alerts = _create_decoder(list[_ListedAlert])
_decode_updates = _create_decoder(list[_UpdatedAlert])


class AlertmanagerClient(_Api):
    name = "Alertmanager"
    api = "Alertmanager's API, version 2"
    max_bytes = 16 * 1024 * 1024

    async def read_state(self) -> AlertmanagerState:
        """Its current state. Raises ApiError."""
        status = await self._read(_decode_status, "/api/v2/status")
        path = "/api/v2/alerts?active=true&silenced=true&inhibited=true&unprocessed=true"
        return await self._read(partial(_build_state, status.uptime.timestamp()), path)

    async def read_configuration(self) -> str:
        """Its configuration in YAML, secrets and URLs masked. Raises ApiError."""
        return (await self._read(_decode_configuration, "/api/v2/status")).config.original

    async def list_silences(self) -> list[FoundSilence]:
        """Also those that have ended in the last days. Raises ApiError."""
        return await self._read(_decode_silences, "/api/v2/silences")

    async def find_silences(self, mark: str) -> list[FoundSilence]:
        """The silences whose comment has this mark, and that have not ended. Raises ApiError."""
        listed = await self.list_silences()
        return [each for each in listed if mark in each.comment and each.status.state != "expired"]

    async def read_update_time(self, alertname: str, annotation: str, value: str) -> float | None:
        """When it last got an alert whose annotation has this value, unix seconds by its clock; None if it has none.

        Raises ApiError.
        """
        listed = await self._read(_decode_updates, "/api/v2/alerts", params={"filter": f'alertname="{alertname}"'})
        times = [each.updated_at for each in listed if each.annotations.get(annotation) == value]
        return min(times).timestamp() if times else None

    async def create_silence(self, silence: NewSilence, now: float) -> str:
        """Create a silence; its ID. Each call makes another one.

        Raises:
            ApiError: it was refused, or nobody knows whether it was created: see `is_refusal`.
        """
        document = {
            "matchers": [
                {"name": name, "value": value, "isRegex": False, "isEqual": True}
                for name, value in silence.labels.items()
            ],
            "startsAt": datetime.fromtimestamp(now, UTC).isoformat(),
            "endsAt": datetime.fromtimestamp(silence.ends_at, UTC).isoformat(),
            "createdBy": silence.created_by,
            "comment": silence.comment,
        }
        return (await self._read(_decode_created, "/api/v2/silences", method="POST", json=document)).silence_id


def _build_state(started_at: float, body: bytes) -> AlertmanagerState:
    alerts = _decode_alerts(body)
    active = {
        alert.fingerprint: ActiveAlert(
            alert.starts_at.astimezone(UTC), frozenset(each.name for each in alert.receivers)
        )
        for alert in alerts
        if alert.status.state == "active"
    }
    return AlertmanagerState(started_at, {alert.fingerprint: alert.labels for alert in alerts}, active)


_MAX_CONCURRENT: Final = 4
_KEEP_SECONDS: Final = 15.0
"""For which an answer, or an error, is shown again without another request."""
_MAX_ANSWERS: Final = 256
_MAX_TEXT: Final = 500


class UnixTime(float):
    """Unix seconds; RFC 3339 in JSON."""


def _parse_time(kind: type[UnixTime], value: object) -> UnixTime:
    return kind(msgspec.convert(value, _Moment).timestamp())


class KeyFailure(msgspec.Struct, gc=False, frozen=True):
    """Failures of one kind in a row, as the exporter saw them."""

    target: str
    operation: str
    reason: str
    first_at: UnixTime
    last_at: UnixTime
    detail: str = ""
    count: int = 1
    cause: str = ""
    """What is behind the reason; empty where that is not known."""
    is_current: bool = False
    """Whether the last round trip failed in this way."""

    def __post_init__(self) -> None:
        # Pages and post-mortems show it: no more than an exporter has, whatever answers.
        msgspec.structs.force_setattr(self, "detail", self.detail[:_MAX_TEXT])


class _Answer(msgspec.Struct, gc=False):
    since: UnixTime
    failures: list[KeyFailure]


@dataclass(frozen=True, slots=True)
class FailureHistory:
    """What the exporter knows of a key or a service, or why it does not say."""

    failures: Sequence[KeyFailure] = ()
    """The oldest first."""
    recorded_since: float | None = None
    """When the exporter started, unix seconds; None if there was no answer."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Whose failures are read: those of a key, or of all keys of a service."""

    name: str
    """`target` or `service`."""
    value: str


_decode_history = partial(decode_json, msgspec.json.Decoder(_Answer, dec_hook=_parse_time))


class ExporterHistory(_Api):
    """Reads `GET /api/history` of one exporter: when a key began to fail, the fault behind an incident.

    It is read when somebody looks at an incident, never by intake or delivery. The exporter knows what happened since
    its start, and no more. Answers are kept for a moment.

    Args:
        url: of the board, without its last slash; None where `messages.board_url` is not set.
        token_file: a viewer's token; None sends nothing.
        egress: how the exporter is reached.
        monotonic: seconds.
    """

    name = "the exporter"
    api = "keypulse's exporter"
    max_bytes = 1024 * 1024
    timeout = 3.0

    def __init__(
        self,
        url: str | None,
        token_file: Path | None = None,
        egress: EgressSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(url or "", token_file, egress)
        self._monotonic = monotonic
        self._answers: dict[HistoryQuery, tuple[float, FailureHistory]] = {}
        self._reads: dict[HistoryQuery, asyncio.Task[FailureHistory]] = {}
        self._semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

    @property
    def is_configured(self) -> bool:
        return bool(self.url)

    def get_answer(self, query: HistoryQuery) -> FailureHistory | None:
        """The last answer; None if there is none."""
        last = self._answers.get(query)
        return last and last[1]

    def is_current(self, query: HistoryQuery) -> bool:
        """Whether the last answer is of a moment ago."""
        last = self._answers.get(query)
        return last is not None and self._monotonic() - last[0] < _KEEP_SECONDS

    async def read(self, query: HistoryQuery) -> FailureHistory:
        """What the exporter knows, within `timeout`; its `error` says why it knows nothing. Callers share reads."""
        if self.is_current(query):
            return self._answers[query][1]
        if query not in self._reads:
            if len(self._reads) >= _MAX_ANSWERS:
                return FailureHistory(error="too many incidents are looked at; reload the page in a moment")
            self._reads[query] = asyncio.create_task(self._read_and_store(query))
        return await asyncio.shield(self._reads[query])

    async def check(self) -> str:
        """For `doctor`: whether the exporter answers. Raises CheckError."""
        try:
            answer = await self._read_history({})
        except ApiError as error:
            hint = "correct the URL, and see whether the exporter runs there"
            if error.status in {401, 403}:
                hint = "name a viewer's token in `messages.board_token_file`"
            raise CheckError(str(error), hint) from None
        return f"it knows {len(answer.failures)} failures of keys"

    async def close(self) -> None:
        """Ends what is being read, and closes the connections."""
        for task in self._reads.values():
            task.cancel()
        await asyncio.gather(*self._reads.values(), return_exceptions=True)
        await super().close()

    async def _read_and_store(self, query: HistoryQuery) -> FailureHistory:
        try:
            async with asyncio.timeout(self.timeout), self._semaphore:
                answer = await self._read_history({query.name: query.value})
            history = FailureHistory(sorted(answer.failures, key=lambda each: each.first_at), answer.since)
        except TimeoutError:
            history = FailureHistory(error=f"no answer within {self.timeout:g} s")
        except ApiError as error:
            history = FailureHistory(error=str(error))
        finally:
            self._reads.pop(query, None)
        self._answers.pop(query, None)
        self._answers[query] = self._monotonic(), history
        if len(self._answers) > _MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return history

    async def _read_history(self, parameters: dict[str, str]) -> _Answer:
        try:
            return await self._read(_decode_history, "/api/history", params=parameters)
        except ApiError as error:
            if "target" in parameters and error.status == 404:
                raise ApiError("it does not watch this key (HTTP 404)") from None
            raise


@dataclass(frozen=True, slots=True)
class AlertRule:
    expression: str
    label_names: frozenset[str]
    """Of the labels that the rule adds."""


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """A group of rules, which are evaluated together."""

    name: str
    interval: float
    """Seconds between two evaluations."""
    evaluated_at: float | None
    """When it was last evaluated, unix seconds by Prometheus's clock; None before the first time."""
    rules: int
    """How many alerting rules it has."""
    failing_rule: str | None
    """The first rule whose last evaluation failed; None if all succeeded."""
    error: str
    """Prometheus's words for that; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What an expression gives now for one label set."""

    labels: Mapping[str, str]
    at: float
    """Unix seconds by Prometheus's clock."""
    value: float


@dataclass(frozen=True, slots=True)
class Series:
    """The points of a series, oldest first."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]
    """Unix seconds and value; only finite ones."""


class _Rule(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    query: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    health: str = ""
    last_error: str = ""


class _RuleGroup(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    interval: float = 0.0
    last_evaluation: datetime | None = None
    rules: list[_Rule] = msgspec.field(default_factory=list)


class _RuleGroups(msgspec.Struct, gc=False):
    groups: list[_RuleGroup] = msgspec.field(default_factory=list)


class _Address(msgspec.Struct, gc=False):
    url: str


class _Alertmanagers(msgspec.Struct, gc=False, rename="camel"):
    active_alertmanagers: list[_Address]


class _Matrix(msgspec.Struct, gc=False):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _Vector(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: tuple[float, str]


class _Result(msgspec.Struct, Generic[T], gc=False):
    result: list[T]


class _Reply(msgspec.Struct, Generic[T], gc=False):
    data: T


_decode_rules = _create_decoder(_Reply[_RuleGroups])
_decode_alertmanagers = _create_decoder(_Reply[_Alertmanagers])
_decode_range = _create_decoder(_Reply[_Result[_Matrix]])
_decode_instant = _create_decoder(_Reply[_Result[_Vector]])


class PrometheusClient(_Api):
    """One Prometheus: its rules, the expression of an alert, and what an expression gives or gave."""

    name = "Prometheus"
    api = "Prometheus's API, version 1"
    max_bytes = 4 * 1024 * 1024

    async def find_rule(self, alert: Alert) -> AlertRule | None:
        """The rule of an alert, by its name and its labels; None if there is none. Raises ApiError."""
        name = alert.labels.get("alertname", "")
        # A Prometheus that does not know `rule_name[]` gives all rules.
        rules = [rule for rule in await self._read_rules(**{"rule_name[]": name}) if rule.name == name and rule.query]
        best = max(rules, key=lambda rule: _count_matching(rule, alert), default=None)
        if best is None or _count_matching(best, alert) < 0:
            return None
        return AlertRule(best.query, frozenset(best.labels))

    async def has_rule(self, name: str) -> bool:
        """Whether it has an alerting rule of this name. Raises ApiError."""
        return any(rule.name == name for rule in await self._read_rules(**{"rule_name[]": name}))

    async def list_alertmanagers(self) -> list[str]:
        """The addresses of those that it sends alerts to. Raises ApiError."""
        found = (await self._read(_decode_alertmanagers, "/api/v1/alertmanagers")).data.active_alertmanagers
        return [each.url for each in found]

    async def count_rules(self) -> int:
        """How many alerting rules it has. Raises ApiError."""
        return len(await self._read_rules())

    async def list_runbooks(self) -> dict[str, str]:
        """The `runbook_url` of each alerting rule that has one, by the rule's name. Raises ApiError."""
        return {rule.name: url for rule in await self._read_rules() if (url := rule.annotations.get("runbook_url"))}

    async def list_rule_groups(self) -> list[RuleGroup]:
        """The groups that have alerting rules, and how their last evaluation went. Raises ApiError."""
        return [_build_rule_group(group) for group in await self._read_rule_groups() if group.rules]

    async def read_instant(self, expression: str, at: float | None = None) -> list[Sample]:
        """What an expression gave at a time in unix seconds, or gives now. Raises QueryRefusedError, ApiError."""
        # A form, since an expression may be longer than an address may be.
        query = {"query": expression} if at is None else {"query": expression, "time": f"{at:.3f}"}
        reply = await self._read(_decode_instant, "/api/v1/query", method="POST", data=query)
        return [Sample(each.metric, each.value[0], float(each.value[1])) for each in reply.data.result]

    async def read_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """What an expression gave from `start` to `end`. Raises QueryRefusedError, ApiError."""
        query = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        reply = await self._read(_decode_range, "/api/v1/query_range", method="POST", data=query)
        return [_build_series(each) for each in reply.data.result]

    async def _read_rules(self, **query: str) -> list[_Rule]:
        return [rule for group in await self._read_rule_groups(**query) for rule in group.rules]

    async def _read_rule_groups(self, **query: str) -> list[_RuleGroup]:
        query = {"type": "alert", "exclude_alerts": "true", **query}
        return (await self._read(_decode_rules, "/api/v1/rules", params=query)).data.groups

    def _check_status(self, status: int) -> None:
        if status in {400, 422}:
            raise QueryRefusedError(f"it answered HTTP {status} to an expression")
        super()._check_status(status)


def _count_matching(rule: _Rule, alert: Alert) -> int:
    """How many labels of a rule the alert has; -1 if it has another value of one. A template may give any value."""
    fixed = {key: value for key, value in rule.labels.items() if "{{" not in value}
    if any(alert.labels.get(key) != value for key, value in fixed.items()):
        return -1
    return len(fixed)


def _build_series(matrix: _Matrix) -> Series:
    points = [(at, number) for at, text in matrix.values if math.isfinite(number := float(text))]
    return Series({key: value for key, value in matrix.metric.items() if key != "__name__"}, points)


def _build_rule_group(group: _RuleGroup) -> RuleGroup:
    at = group.last_evaluation
    failing = next((rule for rule in group.rules if rule.health == "err"), None)
    return RuleGroup(
        name=group.name,
        interval=group.interval,
        # Before the first time Prometheus gives the first year of the calendar.
        evaluated_at=at.timestamp() if at is not None and at.year > 1 else None,
        rules=len(group.rules),
        failing_rule=failing.name if failing else None,
        error=failing.last_error if failing else "",
    )
