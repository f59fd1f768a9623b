"""`/channels`: each channel with its state, its checks, its last test, and its configuration; also at `/api/channels`.

The configuration is shown without secrets. A secret stands in a file, which is named by its path. An address may be a
secret, or hold one in its path: of an address only scheme, host and port are shown, unless it is the provider's, as
documented.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from starlette.requests import Request

from services.relay.channel_health.checks import ChannelChecks, advise_on
from services.relay.channel_health.store import ChannelCheck, CheckKind, CheckRow, list_checks, read_results
from services.relay.channels.port import ChannelSettings, MessageRate
from services.relay.channels.requests import MASK
from services.relay.config import RelaySettings
from services.relay.console.frame import Console, Done, is_api
from services.relay.intake.routing import RouteSettings
from services.relay.now.lights import Verdict, build_channel_light
from services.relay.now.overview import ChannelOverview, count_delivered, read_channel_overviews
from services.relay.outbox.rate_limit import count_available
from services.relay.outbox.store import Store
from services.relay.text import format_seconds
from shared.check import CheckResult, join_hint
from shared.config.server_settings import Role
from shared.http.access import get_caller
from shared.http.json_api import RefusedError, format_json_time

SettingValue = str | int | float | bool | list[str]
"""A value as a person, or JSON, reads it."""
_UNITS: Final = (("s", 1.0), ("m", 60.0), ("h", 3600.0))


def mask_settings(settings: ChannelSettings) -> dict[str, SettingValue]:
    """Each key that has a value, as in the configuration's file; first the keys that the file sets."""
    fields = type(settings).model_fields
    names = sorted(fields, key=lambda name: (name != "kind", name not in settings.model_fields_set))
    values = {name: getattr(settings, name) for name in names}
    return {
        fields[name].alias or name: _mask_value(value, fields[name].default)
        for name, value in values.items()
        if value is not None
    }


def list_default_keys(settings: ChannelSettings) -> frozenset[str]:
    """The keys that the configuration's file leaves as they are."""
    fields = type(settings).model_fields
    return frozenset(field.alias or name for name, field in fields.items() if name not in settings.model_fields_set)


def mask_url(url: str) -> str:
    """An address without what may be a secret: its user, its path, its query and its fragment."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    has_more = parts.path.strip("/") or parts.query or parts.fragment
    return f"{parts.scheme}://{address}" + (f"/{MASK}" if has_more else "")


def format_rate(per_second: float) -> str:
    """A rate as in the configuration, such as `1/s` or `45/m`."""
    unit, seconds = next(
        ((unit, seconds) for unit, seconds in _UNITS if (per_second * seconds).is_integer()), _UNITS[-1]
    )
    return f"{per_second * seconds:g}/{unit}"


def _mask_value(value: object, default: object) -> SettingValue:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, MessageRate):
        return format_rate(value.per_second)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return mask_url(value) if "://" in value and value != default else value
    if isinstance(value, (tuple, list)):
        return [str(_mask_value(each, None)) for each in value]
    return MASK  # of a type that nothing is known of


class ChannelUse(NamedTuple):
    text: str
    route: int | None = None
    """The position of its route."""


@dataclass(frozen=True, slots=True)
class ConfiguredChannel:
    """What the configuration says about a channel."""

    name: str
    kind: str
    destination: str
    configuration: Mapping[str, SettingValue]
    default_keys: frozenset[str]
    """Those that the configuration's file leaves as they are."""
    limitations: Sequence[str]
    uses: Sequence[ChannelUse]
    is_checkable: bool
    """Whether there is anything to check."""
    rate: str | None
    """Its rate limit, such as `1/s`."""
    rate_per_second: float | None


def list_configured_channels(settings: RelaySettings) -> list[ConfiguredChannel]:
    """The channels, in the order of the configuration."""
    return [_describe(settings, name, own) for name, own in settings.channels.items()]


def list_uses(settings: RelaySettings, channel: str) -> Iterator[ChannelUse]:
    """The uses of a channel, its routes in their order; none of a channel that gets nothing."""
    for position, route in enumerate(settings.routes):
        if channel in route.channels:
            yield ChannelUse(describe_route(route), position)
        for step in route.escalate:
            if channel in step.channels:
                text = f"{describe_route(route)}, if nobody acknowledges within {format_seconds(step.after)}"
                yield ChannelUse(text, position)
    if channel in settings.default_channels:
        yield ChannelUse("Default channel: what no route takes, and what a channel that is down cannot deliver")
    for watchdog in settings.watchdogs:
        if channel in watchdog.channels:
            yield ChannelUse(f"Absence of the watchdog {watchdog.name}")


def describe_route(route: RouteSettings) -> str:
    """The conditions of a route, in one line."""
    conditions = [f'receiver="{route.receiver}"'] if route.receiver is not None else []
    conditions += [f'{each.label}{each.operator}"{each.value}"' for each in route.matchers]
    return ", ".join(conditions) or "every alert"


def _describe(settings: RelaySettings, name: str, own: ChannelSettings) -> ConfiguredChannel:
    rate = settings.get_rate(name)
    return ConfiguredChannel(
        name=name,
        kind=str(getattr(own, "kind", "")),
        destination=own.destination,
        configuration=mask_settings(own),
        default_keys=list_default_keys(own),
        limitations=own.limitations,
        uses=list(list_uses(settings, name)),
        is_checkable=bool(own.connect(settings.delivery.timeout).list_checks("")),  # it opens no connection
        rate=None if rate is None else format_rate(rate),
        rate_per_second=rate,
    )


MAX_CHECKS: Final = 30
"""The checks that are shown of one channel."""


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel as a person reads it."""

    configured: ConfiguredChannel
    overview: ChannelOverview
    verdict: Verdict
    failure_hint: str
    """What to do about its last failure; empty if there is none."""
    next_message_at: float | None
    """When its rate limit allows the next message, unix seconds; None if it does now."""
    checks: Sequence[CheckRow]
    """The last ones, the newest first."""


async def read_views(store: Store, configured: Sequence[ConfiguredChannel]) -> list[ChannelView]:
    """The channels with their state, in their order. Raises StoreUnavailableError."""
    now, names = store.clock(), [each.name for each in configured]
    overviews = await store.read(partial(read_channel_overviews, names=names, now=now))
    checks = await store.read(
        lambda connection: [list_checks(connection, name, CheckKind.CHECK, MAX_CHECKS) for name in names]
    )
    return [
        ChannelView(
            channel,
            overview,
            build_channel_light(overview, now).verdict,
            advise_on(overview.last_failure.reason if overview.last_failure else None),
            find_next_message_time(overview, channel.rate_per_second, now),
            own_checks,
        )
        for channel, overview, own_checks in zip(configured, overviews, checks, strict=True)
    ]


def find_next_message_time(overview: ChannelOverview, rate: float | None, now: float) -> float | None:
    """When the rate limit allows the next message, unix seconds; None if it does now."""
    seconds = count_available(overview.next_token_at, now, 1, rate)[1]
    return None if seconds is None else now + seconds


class ChannelsPages:
    """The list of channels and the page of each, with checks and tests on request; and the same as JSON."""

    def __init__(self, store: Store, settings: RelaySettings, checks: ChannelChecks) -> None:
        self._store = store
        self._channels = list_configured_channels(settings)
        self._checks = checks

    def add_routes(self, console: Console) -> None:
        one, refused = "/channels/{name}", "Nothing was done on {name}"
        console.page("/channels", self._list, "channels.html.j2", title="Channels", encode=_encode_list)
        console.page(one, self._show, "channel.html.j2")
        console.action(f"{one}/check", self._check, Role.RESPONDER, "check channel", refused=refused)
        console.action(f"{one}/test", self._test, Role.RESPONDER, "test channel", refused=refused)

    async def _list(self, request: Request) -> dict[str, Any]:
        views = await read_views(self._store, self._channels)
        # To count what was delivered takes a whole index, and no page shows it.
        return {"channels": views, "delivered": await self._store.read(count_delivered) if is_api(request) else {}}

    async def _show(self, request: Request) -> dict[str, Any]:
        (channel,) = await read_views(self._store, [self._find(request)])
        test = channel.overview.last_test
        return {
            "channel": channel,
            "check_results": await self._read_results(channel.overview.last_check),
            "test": test,
            "test_results": await self._read_results(test),
        }

    async def _check(self, request: Request) -> Done:
        name = self._find(request).name
        return _finish(name, await self._checks.check(name, get_caller(request).name), "checked: nothing is wrong")

    async def _test(self, request: Request) -> Done:
        name = self._find(request).name
        return _finish(name, await self._checks.test(name, get_caller(request).name), "test message sent")

    def _find(self, request: Request) -> ConfiguredChannel:
        name = request.path_params["name"]
        found = next((each for each in self._channels if each.name == name), None)
        if found is None:
            names = ", ".join(sorted(each.name for each in self._channels))
            raise RefusedError(f"no such channel; expected one of {names}", 404)
        return found

    async def _read_results(self, row: CheckRow | None) -> list[CheckResult]:
        return [] if row is None else await self._store.read(partial(read_results, row=row))


def _finish(name: str, check: ChannelCheck, done: str) -> Done:
    failure, seconds = check.failure, round(check.seconds, 3)
    outcome = done if failure is None else f"{failure.name}: {join_hint(failure.detail, failure.hint)}"
    results = [asdict(result) for result in check.results]
    body = {"channel": name, "ok": failure is None, "seconds": seconds, "results": results}
    return Done(f"{name}: {outcome}", f"/channels/{name}", body)


def _encode_list(listed: Mapping[str, Any]) -> dict[str, Any]:
    return {"channels": [_encode_view(view, listed["delivered"]) for view in listed["channels"]]}


def _encode_view(view: ChannelView, delivered: Mapping[str, int]) -> dict[str, Any]:
    configured, overview, verdict = view.configured, view.overview, view.verdict
    success, failure = overview.last_success, overview.last_failure
    return {
        "channel": configured.name,
        "kind": configured.kind,
        "destination": configured.destination,
        "configuration": configured.configuration,
        "limitations": configured.limitations,
        "used_by": [use._asdict() for use in configured.uses],
        "rate": configured.rate,
        "status": verdict.status,
        "summary": verdict.text,
        "hint": verdict.hint,
        "is_down": overview.is_down,
        "breaker": overview.breaker,
        "failures": overview.failures,
        "reason": overview.reason,
        "paused_until": format_json_time(overview.paused_until),
        "retry_after_until": format_json_time(overview.retry_after_until),
        "next_message_at": format_json_time(view.next_message_at),
        "waiting": overview.waiting,
        "sending": overview.sending,
        "oldest_accepted_at": format_json_time(overview.oldest_accepted_at),
        "due_at": format_json_time(overview.due_at),
        "delivered": delivered.get(configured.name, 0),
        "dead": overview.dead,
        "last_success": success and {"id": success.id, "at": format_json_time(success.finished_at)},
        "last_failure": failure and {**asdict(failure), "at": format_json_time(failure.at), "hint": view.failure_hint},
        "last_test": overview.last_test and _encode_check(overview.last_test),
        "checks": [_encode_check(check) for check in view.checks],
    }


def _encode_check(check: CheckRow) -> dict[str, Any]:
    return {
        "at": format_json_time(check.started_at),
        "ok": check.problem is None,
        "problem": check.problem,
        "hint": check.hint,
        "requested_by": check.requested_by,
        "seconds": round(check.seconds, 3),
    }
