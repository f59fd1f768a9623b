"""What a person may set of the relay. A mistake is named with its key and what was expected."""

import re
from collections.abc import Sized
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainValidator, TypeAdapter, ValidationInfo, model_validator

from services.relay.channels.registry import AnyChannel
from services.relay.delivery.enrich.links import check_template
from services.relay.intake.routing import Matcher, parse_matcher
from shared import settings
from shared.planned import planned
from shared.settings import Address, Duration, FilePath, ListenAddress, Section, ServerSettings

T = TypeVar("T", bound=Sized)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _database(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.startswith("postgresql"):
        raise ValueError("PostgreSQL is not supported in this version; expected sqlite:///FILE")
    file = value.removeprefix("sqlite:///")
    if file == value or not file:
        raise ValueError("expected sqlite:///FILE, with four slashes for an absolute path")
    return TypeAdapter(FilePath).validate_python(file)


def _channel_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("expected a name of letters, digits, '-', '_' and '.'")
    return name


def _some(values: T) -> T:
    # Not pydantic's min_length, which complains of an empty list where the items have mistakes of their own.
    if not values:
        raise ValueError("expected at least one")
    return values


def _known(name: str, info: ValidationInfo) -> str:
    channels = info.data.get("channels")  # absent where it has mistakes of its own, which are named already
    if channels is not None and name not in channels:
        raise ValueError(f"no such channel; expected one of {', '.join(sorted(channels))}")
    return name


def _to_known(route: "Route", info: ValidationInfo) -> "Route":
    for name in route.channels:
        try:
            _known(name, info)
        except ValueError as error:
            raise ValueError(f"channels: {name}: {error}") from None
    return route


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("expected a network without host bits, such as 10.0.0.0/8") from None


Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network, json_schema_input_type=str)]
"""A network in CIDR notation."""
Database = Annotated[Path, BeforeValidator(_database, json_schema_input_type=str)]
"""The SQLite file, written as `sqlite:///FILE`."""
ParsedMatcher = Annotated[
    Matcher,
    BeforeValidator(
        lambda value: parse_matcher(value) if isinstance(value, str) else value, json_schema_input_type=str
    ),
]
Template = Annotated[str, AfterValidator(check_template)]
ChannelName = Annotated[str, AfterValidator(_channel_name)]
KnownChannel = Annotated[str, AfterValidator(_known)]


class Auth(settings.Auth):
    """Who may send alerts, and who may look."""

    bearer_token_file: FilePath
    """One token a line, two while they are rotated."""
    allow_from: tuple[Network, ...] = ()
    """Networks that may send alerts; empty lets every address try."""


class Alertmanager(Section):
    """Where open incidents would be compared with Alertmanager's."""

    urls: tuple[str, ...] = ()
    token_file: FilePath | None = None


class Links(Section):
    """Templates over an alert's labels, and alertname_lower, from_ms, to_ms."""

    runbook: Template | None = None
    dashboard: Template | None = None
    allow_hosts: tuple[Annotated[str, AfterValidator(str.lower)], ...] = ()
    """Hosts that an alert's own `runbook_url` or `dashboard_url` may lead to; empty allows every one."""


class Route(Section):
    """Alerts of a receiver that match go to these channels; the first route that matches counts."""

    receiver: str | None = None
    matchers: tuple[ParsedMatcher, ...] = ()
    channels: Annotated[tuple[str, ...], AfterValidator(_some)]


class Delivery(Section):
    """How long and how often a channel is tried."""

    timeout: Duration = 10.0
    lease: Duration = 20.0
    backoff_initial: Duration = 1.0
    backoff_max: Duration = 300.0
    give_up_after: Duration = 86400.0
    duplicate_window: Duration = 60.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.lease <= self.timeout:
            raise ValueError(f"lease ({self.lease:g}s) must be longer than timeout ({self.timeout:g}s)")
        if self.backoff_max < self.backoff_initial:
            raise ValueError("backoff_max must not be shorter than backoff_initial")
        return self


class Pacing(Section):
    """Rates of channels."""

    enabled: bool = True


class RelaySettings(ServerSettings):
    """The relay's configuration."""

    service_name: ClassVar[str] = "relay"

    listen: ListenAddress = Address("127.0.0.1", 9912)
    auth: Auth
    database: Database = Path("/var/lib/keypulse/relay.db")
    alertmanager: Alertmanager = planned(Alertmanager())
    links: Links = Links()
    delivery: Delivery = Delivery()
    pacing: Pacing = planned(Pacing())
    # Before the routes, which are checked against it.
    channels: Annotated[dict[ChannelName, AnyChannel], AfterValidator(_some)]
    routes: tuple[Annotated[Route, AfterValidator(_to_known)], ...] = ()
    default_channels: Annotated[tuple[KnownChannel, ...], AfterValidator(_some)]
