"""The settings of what messages contain beside the alert: `links` and `messages`."""

from collections.abc import Iterable
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, model_validator

from services.relay.delivery.enrichment.enricher import EnrichmentSettings
from services.relay.delivery.links import check_allowed_host, check_template
from services.relay.delivery.templates import TemplateFolder
from shared.config.file_checks import FileCheck, check_readable
from shared.config.settings import SecretPath, Section, resolve_path
from shared.config.url import BaseUrl, check_base_url, check_secret_url
from shared.net.egress import EgressSettings

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
    """Which of the two wins, where an alert has an annotation `runbook_url` or `dashboard_url` of its own."""
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
        """The time zone itself."""
        return _load_zone(self.timezone)

    @property
    def enrichment(self) -> EnrichmentSettings:
        """What delivery adds to messages."""
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
