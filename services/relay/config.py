"""The relay's configuration: each error names the key and what was expected."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo, model_validator

from services.relay.channels.email.channel import check_address
from services.relay.channels.log import LogSettings
from services.relay.channels.port import ProofSettings
from services.relay.channels.registry import AnyChannel
from services.relay.channels.slack.channel import SlackSettings, check_name_or_id
from services.relay.delivery.acknowledge_link import SignatureSettings
from services.relay.delivery.enrichment import EnrichmentSettings
from services.relay.delivery.message import LinkRules, check_allowed_host, check_template, list_unusual_variables
from services.relay.delivery.templates import TemplateFolder
from services.relay.intake.routing import EscalationSettings, RouteSettings, WatchdogSettings, require_one
from services.relay.model import Button
from services.relay.outbox.retention import compute_minimum
from shared.config.file_checks import FileCheck, FileCheckError, check_readable, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.server_settings import AuthSettings, Role, ServerSettings
from shared.config.settings import (
    Address,
    BaseUrl,
    Duration,
    FilePath,
    ListenAddress,
    Network,
    PageLinks,
    ProviderUrl,
    SecretPath,
    Section,
    Size,
    TokenPath,
    check_base_url,
    check_secret_url,
    is_placeholder_host,
    is_placeholder_mailbox,
    is_placeholder_url,
    resolve_path,
)
from shared.net.egress import EgressSettings
from shared.sql.database_url import DatabaseSetting

Template = Annotated[str, AfterValidator(check_template)]


def _check_timezone(name: str) -> str:
    try:
        _load_zone(name)
    except (LookupError, ValueError, OSError):  # no such file, no path, a folder
        raise ValueError("expected the IANA name of a time zone, such as UTC or Europe/Berlin") from None
    return name


def _load_zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # UTC, even on a machine without time zones


class LinkSettings(Section):
    """Templates over an alert's labels, and alertname_lower, from_ms, to_ms."""

    runbook: Template | None = None
    dashboard: Template | None = None
    prefer: Literal["template", "annotation"] = "template"
    """Which of the two wins, where an alert has an annotation `runbook_url` or `dashboard_url`."""
    allow_hosts: tuple[Annotated[str, AfterValidator(check_allowed_host)], ...] = ()
    """Hosts that an alert's own addresses may lead to: `runbook_url`, `dashboard_url`, generatorURL and externalURL."""


def _parse_runbook(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        return check_base_url(value)
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("expected a Markdown file, a folder of them, or the URL of one")
    return resolve_path(Path(value))


def _check_runbook(location: Path | str) -> Iterable[Path]:
    if isinstance(location, Path):
        check_readable(location)
    return ()  # it holds no secret


RunbookLocation = Annotated[
    Path | str, BeforeValidator(_parse_runbook, json_schema_input_type=str), FileCheck(_check_runbook)
]
"""A Markdown file, a folder with a file for each alert, or a URL."""


class MessageSettings(EgressSettings):
    """What messages contain beside the alert. Proxy and authorities are for runbook, Prometheus and board."""

    runbook: RunbookLocation | None = None
    """Each message shows the first diagnosis steps of its alert's section."""
    prometheus_url: BaseUrl | None = None
    """Each message shows what its alert's expression gives now, and a chart of the last hour."""
    prometheus_token_file: SecretPath | None = None
    """Sent as Bearer."""

    board_url: BaseUrl | None = None
    """The exporter's board; each alert links to its key or its service there, and an incident shows its fault."""
    board_token_file: SecretPath | None = None
    """A viewer's token of the exporter, sent as Bearer."""
    timezone: Annotated[str, AfterValidator(_check_timezone)] = "UTC"
    """The readers' time zone, beside UTC in mails and PagerDuty; Slack knows each reader's own."""

    templates: TemplateFolder | None = None
    """A folder with a team's own words: `title.j2`, `summary.j2`, `description.j2`."""

    @property
    def zone(self) -> tzinfo:
        return _load_zone(self.timezone)

    @property
    def enrichment(self) -> EnrichmentSettings:
        return EnrichmentSettings(self.runbook, self.prometheus_url, self.prometheus_token_file, self.egress)

    @property
    def egress(self) -> EgressSettings:
        """How runbook, Prometheus and the board are reached."""
        return EgressSettings(proxy=self.proxy, proxy_url_file=self.proxy_url_file, ca_file=self.ca_file)

    @model_validator(mode="after")
    def _check_plaintext_secret(self) -> Self:
        for url, token in (
            (self.prometheus_url, self.prometheus_token_file),
            (self.board_url, self.board_token_file),
        ):
            if url and token:
                check_secret_url(url)
        return self


def _check_token(secret: str) -> None:
    if not secret.startswith("xapp-"):
        raise FileCheckError("holds no app-level token", "expected xapp-…, with the scope connections:write")


_EXPECTED_TOKEN: Final = "expected a file with the app-level token, xapp-…, on its first line"  # noqa: S105  # no token
AppTokenPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_TOKEN, _check_token))]
"""A file with an app-level token."""
UserId = Annotated[str, StringConstraints(pattern="^[UW][A-Z0-9]{2,}$")]
"""Of a person in Slack, such as U012ABCDEF."""
GroupId = Annotated[str, StringConstraints(pattern="^S[A-Z0-9]{2,}$")]
"""Of a user group in Slack, such as S012ABCDEF."""


class SilenceSettings(Section):
    """Who may silence an incident by its button; nobody without an entry."""

    allow_users: tuple[UserId, ...] = ()
    allow_groups: tuple[GroupId, ...] = ()
    max: Annotated[Duration, Field(ge=60, le=7 * 86400)] = 4 * 3600.0
    """How long such a silence lasts."""

    @property
    def is_enabled(self) -> bool:
        return bool(self.allow_users or self.allow_groups)


class InteractiveSettings(EgressSettings):
    app_token_file: AppTokenPath | None = None
    """Contains the app-level token, xapp-…, with the scope connections:write."""
    allow_remote_insecure: bool = False
    """Lets plaintext leave this machine: to a stand-in among containers."""
    api_url: ProviderUrl = "https://slack.com/api/"
    silence: SilenceSettings = SilenceSettings()


_OTHER_HEADERS: Final = ("authorization", "cookie", "host", "x-csrf-token")


def _check_issuer(url: str) -> str:
    check_secret_url(url)
    check_base_url(url)
    return url  # with its last slash, if it has one: a token names the issuer letter by letter


def _check_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    if "openid" not in scopes:
        raise ValueError("expected openid among them")
    return scopes


def _check_header(name: str) -> str:
    if name.lower() in _OTHER_HEADERS:
        raise ValueError("expected a header of the proxy's own, such as X-Forwarded-User")
    return name.lower()


def _check_proxies(networks: tuple[Network, ...]) -> tuple[Network, ...]:
    if not networks or any(network.prefixlen == 0 for network in networks):
        raise ValueError("expected the proxy's addresses, such as 10.0.0.7/32; whoever sends from them is believed")
    return networks


Header = Annotated[str, Field(pattern="^[A-Za-z0-9-]+$"), AfterValidator(_check_header)]
Roles = Annotated[dict[str, Role], Field(min_length=1)]


class OidcSettings(EgressSettings):
    issuer: Annotated[str, AfterValidator(_check_issuer)]
    """Its address, below which its discovery document is."""
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: SecretPath
    scopes: Annotated[tuple[str, ...], AfterValidator(_check_scopes)] = ("openid", "profile", "email")
    groups_claim: Annotated[str, Field(min_length=1)] = "groups"
    """The claim with a person's groups, in the ID token or the userinfo."""
    roles: Roles
    """Of each group."""


class ProxyLoginSettings(Section):
    """A proxy that names the person in a header."""

    user_header: Header
    groups_header: Header | None = None
    """Groups, separated by commas."""
    from_: Annotated[tuple[Network, ...], AfterValidator(_check_proxies)] = Field(alias="from")
    """The proxy's addresses; a header from any other is ignored."""
    roles: Roles
    """Of each group where there is a groups_header, else of each user."""


def find_role(roles: dict[str, Role], names: Iterable[str]) -> Role | None:
    """Return the highest role of these groups or users; None if none of them has one."""
    found = {roles[name] for name in names if name in roles}
    return max(found, key=list(Role).index, default=None)


T = TypeVar("T", bound=Sized)
P = TypeVar("P", bound=Section)
R = TypeVar("R", RouteSettings, EscalationSettings, WatchdogSettings)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MAX_CONTACTS: Final = 10
MAX_CONTACT_LENGTH: Final = 200
"""Characters of a role, and of its address."""


def _check_channel_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("expected a name of letters, digits, '-', '_' and '.'")
    return name


def _check_channel(name: str, info: ValidationInfo) -> str:
    channels = info.data.get("channels")  # absent if it has errors, which are reported already
    if channels is not None and name not in channels:
        raise ValueError(f"no such channel; expected one of {', '.join(sorted(channels))}")
    return name


def _check_channels(route: R, info: ValidationInfo) -> R:
    for name in route.channels:
        try:
            _check_channel(name, info)
        except ValueError as error:
            raise ValueError(f"channels: {name}: {error}") from None
    return route


def _check_escalation(route: RouteSettings, info: ValidationInfo) -> RouteSettings:
    before, earlier = 0.0, set(route.channels)
    for number, step in enumerate(route.escalate):
        key = f"escalate.{number}"
        if step.after <= before:
            raise ValueError(f"{key}.after: expected longer than the step before it")
        try:
            _check_channels(step, info)
        except ValueError as error:
            raise ValueError(f"{key}.{error}") from None
        if repeated := earlier.intersection(step.channels):
            raise ValueError(f"{key}.channels: {min(repeated)} has the incident by then; expected another channel")
        before, earlier = step.after, earlier.union(step.channels)
    return route


def parse_contact(value: object) -> object:
    """The value, or empty text for null. Raises ValueError for a number: YAML reads +49301234567 as one."""
    if isinstance(value, (int, float)):
        raise ValueError("expected text in quotes, since YAML takes a telephone number for a number")  # noqa: TRY004  # pydantic reports ValueError
    return "" if value is None else value


def is_placeholder(address: str) -> bool:
    """Whether it is empty, still to be filled in, such as `<telephone>`, or an address of an example."""
    if re.fullmatch(r"(<.*>)?", address.strip(), re.DOTALL):
        return True
    return _is_placeholder_address("", address)


def _check_contact(address: str, info: ValidationInfo) -> str:
    if is_placeholder(address) and info.data.get("environment") == "production":
        raise ValueError("a placeholder is not allowed in production; expected a telephone number, a channel, …")
    return address


def _check_placeholders(section: P, info: ValidationInfo) -> P:
    found = [
        type(section).model_fields[key].alias or key
        for key, value in section
        for text in (value if isinstance(value, tuple) else (value,))
        if isinstance(text, str) and _is_placeholder_address(key, text)
    ]
    if found and info.data.get("environment") == "production":
        names = ", ".join(dict.fromkeys(found))
        raise ValueError(f"{names}: a placeholder is not allowed in production; expected an address of your own")
    return section


def _is_placeholder_address(key: str, text: str) -> bool:
    if "://" in text:
        return is_placeholder_url(text)
    return is_placeholder_mailbox(text) if "@" in text else key == "host" and is_placeholder_host(text)


def _check_unique_names(watchdogs: tuple[WatchdogSettings, ...]) -> tuple[WatchdogSettings, ...]:
    names = [watchdog.name for watchdog in watchdogs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two watchdogs are called {twice}; expected matchers that differ")
    return watchdogs


OWN_PATHS: Final = frozenset(
    [
        *("-", "acknowledge", "alerts", "api", "audit", "channels", "console", "deliveries", "events", "incidents"),
        *("login", "logout", "metrics", "proof", "quarantine", "report", "report.csv", "routes"),
    ]
)
"""What the paths of its pages and endpoints begin with."""


def _check_public_path(url: str) -> str:
    """Of a proxy that removes the path from a request, and of one that leaves it there."""
    path = urlsplit(url).path
    if not re.fullmatch(r"(/(?!\.)[\w.~-]+)*", path, re.ASCII):
        raise ValueError("expected a path of letters, digits and -._~ such as https://tools.example.org/keypulse")
    if path and (first := path.split("/")[1]) in OWN_PATHS:
        raise ValueError(f"/{first} is a path of the relay itself; expected another, such as /keypulse")
    return url


def _check_proof(proof: ProofSettings) -> ProofSettings:
    for key, check, values in (
        ("slack_channel", check_name_or_id, (proof.slack_channel,) if proof.slack_channel is not None else ()),
        ("mail_to", check_address, proof.mail_to),
    ):
        for value in values:
            try:
                check(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
    return proof


def _check_max_bytes(retention: "RetentionSettings", info: ValidationInfo) -> "RetentionSettings":
    intake = info.data.get("intake")  # absent if it has errors
    if intake is not None and retention.max_bytes < (least := compute_minimum(intake.max_body)):
        raise ValueError(f"max_bytes: expected at least {least} bytes, to hold a webhook of intake.max_body")
    return retention


def _check_interactive(interactive: InteractiveSettings, info: ValidationInfo) -> InteractiveSettings:
    channels, alertmanager = info.data.get("channels"), info.data.get("alertmanager")
    bots = (isinstance(each, SlackSettings) and each.token_file is not None for each in (channels or {}).values())
    if interactive.app_token_file is None and interactive.silence.is_enabled:
        raise ValueError("silence: expected `app_token_file` beside it, since presses come by Socket Mode")
    if interactive.app_token_file is not None and channels is not None and not any(bots):
        raise ValueError(
            "app_token_file: expected a channel of kind slack with `token_file`, whose messages have buttons"
        )
    if interactive.silence.is_enabled and alertmanager is not None and not alertmanager.urls:
        raise ValueError("silence: expected `alertmanager.urls`, where silences are created")
    return interactive


ChannelName = Annotated[str, AfterValidator(_check_channel_name)]
ContactRole = Annotated[str, Field(min_length=1, max_length=MAX_CONTACT_LENGTH)]
ContactAddress = Annotated[
    str,
    Field(max_length=MAX_CONTACT_LENGTH),  # of text, and so before what may be none
    BeforeValidator(parse_contact, json_schema_input_type=str | None),
    AfterValidator(_check_contact),
]
ConfiguredChannel = Annotated[str, AfterValidator(_check_channel)]


class RelayAuthSettings(AuthSettings):
    """Who may send alerts, and who may use pages and API."""

    bearer_token_file: TokenPath
    """One token a line, two while they are rotated."""
    allow_from: tuple[Network, ...] = ()
    """Networks that may send alerts; empty lets every address try."""
    public_url: Annotated[BaseUrl, AfterValidator(_check_public_path)] | None = None
    """The relay's own address, as browsers see it."""
    oidc: OidcSettings | None = None
    """A provider of OpenID Connect where people log in."""
    proxy: ProxyLoginSettings | None = None
    """A proxy in front of the relay where people have logged in."""

    @property
    def has_credentials(self) -> bool:
        """Whether there is a credential beside those of web.yml, for pages and API."""
        return super().has_credentials or self.oidc is not None or self.proxy is not None

    @model_validator(mode="after")
    def _check_public_url(self) -> Self:
        if self.oidc and self.public_url is None:
            raise ValueError(
                "public_url: expected beside `oidc`, which sends browsers back there; set the address that they use"
            )
        return self


class AlertmanagerSettings(EgressSettings):
    """With which open incidents are compared: Alertmanager sends no resolve for an alert that is silenced by then."""

    urls: tuple[BaseUrl, ...] = ()
    """Of every Alertmanager that sends to this relay; empty compares nothing."""
    token_file: SecretPath | None = None

    @model_validator(mode="after")
    def _check_plaintext_secret(self) -> Self:
        for url in self.urls if self.token_file else ():
            check_secret_url(url)
        return self


class IntakeSettings(Section):
    max_body: Annotated[Size, Field(ge=64 * 1024, le=256 * 1024 * 1024)] = 16 * 1024 * 1024
    """A larger one is answered 413. The relay's memory grows with it."""


class DeliverySettings(Section):
    """How long and how often a channel is tried."""

    timeout: Duration = 10.0
    lease: Duration = 20.0
    backoff_initial: Duration = 1.0
    backoff_max: Duration = 300.0
    give_up_after: Duration = 86400.0
    duplicate_window: Duration = 60.0

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.lease < self.timeout + 1:  # in which a send that does not end is stopped
            raise ValueError(f"lease ({self.lease:g}s) must be at least 1s longer than timeout ({self.timeout:g}s)")
        if self.backoff_max < self.backoff_initial:
            raise ValueError("backoff_max must not be shorter than backoff_initial")
        return self


class PacingSettings(Section):
    enabled: bool = True
    digest_over: Annotated[int, Field(ge=1)] = 20
    """How many incidents may wait for a channel's rate before its messages become digests."""


class RetentionSettings(Section):
    """How long finished deliveries are kept. Unfinished ones always are."""

    max_age: Duration = 30 * 86400.0
    max_deliveries: Annotated[int, Field(ge=1)] = 100_000
    max_bytes: Size = 1024**3
    """Of everything in the outbox, the quarantine included."""


class RelaySettings(ServerSettings):
    service_name: ClassVar[str] = "relay"
    first_configuration: ClassVar[str] = "`keypulse-relay init > relay.yml` writes one to begin with"

    listen: ListenAddress = Address("127.0.0.1", 9912)
    auth: RelayAuthSettings
    database: DatabaseSetting = Field("sqlite:////var/lib/keypulse/relay.db", validate_default=True)
    # Before whatever may be a placeholder everywhere but in production.
    environment: Literal["production", "staging", "demo"] = "production"
    alertmanager: Annotated[AlertmanagerSettings, AfterValidator(_check_placeholders)] = AlertmanagerSettings()
    links: Annotated[LinkSettings, AfterValidator(_check_placeholders)] = LinkSettings()
    messages: Annotated[MessageSettings, AfterValidator(_check_placeholders)] = MessageSettings()
    contacts: dict[ContactRole, ContactAddress] = Field({}, max_length=MAX_CONTACTS)
    """The address of each role; shown in each critical message that fires."""
    page_links: PageLinks = Field(default_factory=dict)
    """In the head of every page, such as `{Board: "https://keypulse.example.org"}`."""
    intake: IntakeSettings = IntakeSettings()
    delivery: DeliverySettings = DeliverySettings()
    pacing: PacingSettings = PacingSettings()
    proof: Annotated[ProofSettings, AfterValidator(_check_proof)] = ProofSettings()
    # After the intake, against which it is checked.
    retention: Annotated[RetentionSettings, AfterValidator(_check_max_bytes)] = RetentionSettings()
    # Before the routes, which are checked against it.
    channels: Annotated[
        dict[ChannelName, Annotated[AnyChannel, AfterValidator(_check_placeholders)]], AfterValidator(require_one)
    ]
    routes: tuple[
        Annotated[RouteSettings, AfterValidator(_check_channels), AfterValidator(_check_escalation)], ...
    ] = ()
    default_channels: Annotated[tuple[ConfiguredChannel, ...], AfterValidator(require_one)]
    watchdogs: Annotated[
        tuple[Annotated[WatchdogSettings, AfterValidator(_check_channels)], ...], AfterValidator(_check_unique_names)
    ] = ()
    # After the channels and Alertmanager, against which it is checked.
    interactive: Annotated[InteractiveSettings, AfterValidator(_check_interactive)] = InteractiveSettings()

    @property
    def link_rules(self) -> LinkRules:
        """The rules by which delivery builds links."""
        links = self.links
        return LinkRules(
            links.runbook,
            links.dashboard,
            self.messages.board_url,
            links.prefer == "annotation",
            frozenset(links.allow_hosts),
            self.auth.public_url,
        )

    @property
    def enrichment(self) -> EnrichmentSettings:
        """What delivery adds to messages, with the addresses for the runbook's commands."""
        addresses = {
            "EXPORTER": self.messages.board_url,
            "PROMETHEUS": self.messages.prometheus_url,
            "ALERTMANAGER": next(iter(self.alertmanager.urls), None),
            "RELAY": self.auth.public_url,
        }
        return replace(
            self.messages.enrichment, addresses={name: address for name, address in addresses.items() if address}
        )

    @property
    def acknowledge_link(self) -> SignatureSettings | None:
        """How links are signed that acknowledge; None where nobody could open them."""
        public_url = self.auth.public_url
        return SignatureSettings(public_url, self.auth.bearer_token_file) if public_url else None

    @property
    def slack_bots(self) -> Mapping[str, SlackSettings]:
        """The channels that a bot of Slack serves."""
        slack = {name: channel for name, channel in self.channels.items() if isinstance(channel, SlackSettings)}
        return {name: channel for name, channel in slack.items() if channel.token_file is not None}

    def get_rate(self, channel: str) -> float | None:
        """The channel's messages per second; None without a limit."""
        return self.channels[channel].rate_per_second if self.pacing.enabled else None

    @property
    def buttons(self) -> tuple[Button, ...]:
        if self.interactive.app_token_file is None:
            return ()
        return ("acknowledge", "silence") if self.interactive.silence.is_enabled else ("acknowledge",)

    @property
    def unmerged_channels(self) -> frozenset[str]:
        """The channels that get a message for every event."""
        return frozenset(name for name, channel in self.channels.items() if not channel.merges_waiting)

    @property
    def proven_channels(self) -> frozenset[str]:
        """The channels on which proofs of the path are made: all, or none."""
        return frozenset(self.channels) if self.proof.every else frozenset()

    @property
    def acknowledging_channels(self) -> frozenset[str]:
        return frozenset(name for name, channel in self.channels.items() if channel.acknowledges)

    def find_warnings(self) -> Iterator[tuple[str, str]]:
        """Placeholders among contacts, escalation that reaches nobody, a proxy that is believed for every `Host`."""
        if self.auth.proxy and self.auth.public_url is None:
            yield "auth.public_url", "is missing, so a header of auth.proxy is believed whatever its `Host`; set it"
        for role, address in self.contacts.items():
            if is_placeholder(address):
                yield f"contacts.{role}", "is a placeholder; production does not allow it"
        for key, template in (("runbook", self.links.runbook), ("dashboard", self.links.dashboard)):
            for name in list_unusual_variables(template or ""):
                yield f"links.{key}", f"{{{name}}} is no label of keypulse's alerts; one without it has nothing there"
        for number, route in enumerate(self.routes):
            for position, step in enumerate(route.escalate):
                if all(isinstance(self.channels[name], LogSettings) for name in step.channels):
                    yield f"routes.{number}.escalate.{position}", "reaches nobody: it writes to the log alone"
