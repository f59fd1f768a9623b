"""Reads the configured Prometheus: its rules, the expression of an alert, and what an expression gives or gave.

Nothing is asked of another server: a redirect is an error. https://prometheus.io/docs/prometheus/latest/querying/api/
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from services.relay.http_session import HttpSession, translate_connection_errors
from services.relay.model import Alert
from services.relay.send_error import SendError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.net.egress import EgressSettings
from shared.process.concurrency import run_in_thread_if_large

_MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
_PROVIDER: Final = "Prometheus"
T = TypeVar("T")


class PrometheusError(Exception):
    """Prometheus gave no answer that can be used; the text says why, without secrets."""


class QueryRefusedError(PrometheusError):
    """Prometheus cannot evaluate the expression."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """An alert's rule."""

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


class _RulesReply(msgspec.Struct, gc=False):
    data: _RuleGroups


class _Matrix(msgspec.Struct, gc=False):
    metric: dict[str, str]
    values: list[tuple[float, str]]


class _RangeData(msgspec.Struct, gc=False, rename="camel"):
    result_type: str
    result: list[_Matrix]


class _RangeReply(msgspec.Struct, gc=False):
    data: _RangeData


class _Vector(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: tuple[float, str]


class _InstantData(msgspec.Struct, gc=False, rename="camel"):
    result_type: str
    result: list[_Vector]


class _InstantReply(msgspec.Struct, gc=False):
    data: _InstantData


_RULES: Final = msgspec.json.Decoder(_RulesReply)
_RANGE: Final = msgspec.json.Decoder(_RangeReply)
_INSTANT: Final = msgspec.json.Decoder(_InstantReply)


class PrometheusClient:
    """One Prometheus.

    Args:
        url: of its root.
        token: sent as Bearer; None sends nothing.
        egress: how it is reached.
    """

    def __init__(self, url: str, token: SecretFile | None, egress: EgressSettings | None = None) -> None:
        self._url = url
        self._token = token
        self._session = HttpSession(_PROVIDER, egress=egress)

    async def find_rule(self, alert: Alert) -> AlertRule | None:
        """The rule of an alert, by its name and its labels; None if there is none. Raises PrometheusError."""
        name = alert.labels.get("alertname", "")
        # A Prometheus that does not know `rule_name[]` gives all rules.
        query = {"type": "alert", "rule_name[]": name, "exclude_alerts": "true"}
        reply = await self._decode(_RULES, await self._get("/api/v1/rules", query))
        rules = [rule for group in reply.data.groups for rule in group.rules if rule.name == name and rule.query]
        best = max(rules, key=lambda rule: _count_matching(rule, alert), default=None)
        if best is None or _count_matching(best, alert) < 0:
            return None
        return AlertRule(best.query, frozenset(best.labels))

    async def count_rules(self) -> int:
        """How many alerting rules it has. Raises PrometheusError."""
        return sum(len(group.rules) for group in await self._read_rule_groups())

    async def list_runbooks(self) -> dict[str, str]:
        """The `runbook_url` of each alerting rule that has one, by the rule's name. Raises PrometheusError."""
        rules = [rule for group in await self._read_rule_groups() for rule in group.rules]
        return {rule.name: url for rule in rules if (url := rule.annotations.get("runbook_url"))}

    async def list_rule_groups(self) -> list[RuleGroup]:
        """The groups that have alerting rules, and how their last evaluation went. Raises PrometheusError."""
        return [_build_rule_group(group) for group in await self._read_rule_groups() if group.rules]

    async def _read_rule_groups(self) -> list[_RuleGroup]:
        query = {"type": "alert", "exclude_alerts": "true"}
        return (await self._decode(_RULES, await self._get("/api/v1/rules", query))).data.groups

    async def read_instant(self, expression: str) -> list[Sample]:
        """What an expression gives now. Raises QueryRefusedError, PrometheusError."""
        reply = await self._decode(_INSTANT, await self._get("/api/v1/query", {"query": expression}))
        return [Sample(each.metric, each.value[0], float(each.value[1])) for each in reply.data.result]

    async def read_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """What an expression gave from `start` to `end`. Raises QueryRefusedError, PrometheusError."""
        query = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        reply = await self._decode(_RANGE, await self._get("/api/v1/query_range", query))
        return [_build_series(each) for each in reply.data.result]

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    async def _get(self, path: str, query: Mapping[str, str]) -> bytes:
        body = bytearray()
        try:
            headers = {"Authorization": f"Bearer {self._token.read_value()}"} if self._token else {}
            with translate_connection_errors(_PROVIDER):
                # A form, since an expression may be longer than an address may be; rules are read by GET alone.
                method, form = ("GET", None) if path.endswith("rules") else ("POST", query)
                async with self._session.open().request(
                    method, self._url + path, params=query if form is None else None, data=form, headers=headers
                ) as answer:
                    if answer.status in {400, 422}:
                        raise QueryRefusedError(f"it answered HTTP {answer.status} to an expression")
                    if answer.status != 200:
                        raise PrometheusError(f"it answered HTTP {answer.status}")
                    async for chunk in answer.content.iter_any():
                        body += chunk
                        if len(body) > _MAX_REPLY_BYTES:
                            raise PrometheusError(f"its answer is over {_MAX_REPLY_BYTES} bytes")
        except (SendError, SecretUnreadableError) as error:
            raise PrometheusError(str(error)) from None
        return bytes(body)

    async def _decode(self, decoder: msgspec.json.Decoder[T], body: bytes) -> T:
        try:
            return await run_in_thread_if_large(len(body), lambda: decode_json(decoder, body))
        except UntrustedJsonError:
            raise PrometheusError("its answer is not that of Prometheus's API, version 1") from None


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
