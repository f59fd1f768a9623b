"""The links of an alert: templates filled with its labels, or its own annotations; and the exporter's board. Pure.

What cannot become a link is left out; it never delays an alert. Anybody who can write a rule or a metric writes labels
and annotations, so their values are always escaped, and only http(s) is let through.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

import uritemplate

from services.relay.model import Alert, DeliveryTask, Event, Links
from services.relay.text import MAX_SHORT_URL, MAX_URL, quote_url

_DASHBOARD_MARGIN: Final = timedelta(minutes=30)
"""What a dashboard shows before the start and after the end."""
_COMPUTED_VARIABLES: Final = "alertname_lower, from_ms, to_ms"
_USUAL_VARIABLES: Final = (
    *_COMPUTED_VARIABLES.split(", "),
    *("alertname", "env", "service", "severity", "target", "operation", "permission", "version", "channel", "code"),
    *("cluster", "container", "instance", "job", "namespace", "node", "pod", "region", "team"),
)
"""With labels of keypulse's rules and of most others. An alert may have any, so one that resembles none is no error."""
_VARIABLE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_LABEL_PARAMETER: Final = re.compile(r"[^={}]*=\{(\w+)\}")
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(?:[/?#]|$)")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")


@dataclass(frozen=True, slots=True)
class LinkRules:
    """What the configuration says about links. Templates are RFC 6570 with simple expansion; None makes no link."""

    runbook: str | None
    dashboard: str | None
    board: str | None = None
    """The address of the exporter's board, without its last slash."""
    prefers_annotation: bool = False
    """Whether an alert's own annotation wins over the template."""
    allow_hosts: Collection[str] = frozenset()
    """Hosts that an alert's own addresses may lead to, in lower case; empty allows every one."""
    public_url: str | None = None
    """The relay's own address, without its last slash; None links to no page of it."""


def check_template(template: str) -> str:
    """The template, where it can give a link, and only to its own place. Raises ValueError with what was expected."""
    if not _ORIGIN.match(template):
        raise ValueError("expected http(s)://HOST/…, without a variable or credentials in the host")
    names = re.findall(r"\{([^}]*)\}?", template)
    for name in names:
        if name[:1] and name[:1] in "+#./;?&":
            raise ValueError(f"{{{name}}} is not simple expansion, which escapes; write {{{name[1:]}}}")
        if not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"{{{name}}} is no variable; expected the name of a label, or one of {_COMPUTED_VARIABLES}"
            )
        if similar := _find_similar(name):
            raise ValueError(f"{{{name}}} is unknown; did you mean {{{similar}}}?")
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", template)):
        raise ValueError("expected each { to have its }")
    if _fill_template(template, dict.fromkeys(names, "x")) is None:
        raise ValueError(
            f"gives no link, whatever the labels. Expected at most {MAX_URL} characters, a plain host, a port up to "
            "65535, no spaces, and no . or .. in its path"
        )
    return template


def list_unusual_variables(template: str) -> Iterator[str]:
    """The variables of a template that are neither computed nor usual labels: an alert may lack them."""
    return (name for name in re.findall(r"\{(\w+)\}", template) if name not in _USUAL_VARIABLES)


def _find_similar(name: str) -> str | None:
    """What an unusual name is a slip of: `alertnam`, or `from` for `from_ms`."""
    if name in _USUAL_VARIABLES:
        return None
    close = difflib.get_close_matches(name, _USUAL_VARIABLES, 1, 0.8)
    return next((each for each in _USUAL_VARIABLES if each.startswith(f"{name}_")), close[0] if close else None)


def check_allowed_host(host: str) -> str:
    """The host in lower case. Raises ValueError for what is more than a host, such as a URL or a host with a port."""
    if not _HOST.fullmatch(host):
        raise ValueError("expected the name of a host, without https://, a port, a path or *")
    return host.lower()


def build_links(alert: Alert, accepted_at: datetime, rules: LinkRules) -> Links:
    """An alert's links. A template wins over the annotation of the same meaning, unless the rules prefer annotations.

    Args:
        alert: whose annotations and labels are used.
        accepted_at: the end of what the dashboard shows, while the alert fires.
        rules: of the configuration.
    """

    def choose(annotation: str, template: str | None) -> str | None:
        own = _read_annotation(alert, annotation, rules)
        filled = _expand_template(template, alert, accepted_at)
        return (own or filled) if rules.prefers_annotation else (filled or own)

    return Links(
        runbook=choose("runbook_url", rules.runbook),
        dashboard=choose("dashboard_url", rules.dashboard),
        board=_build_board_link(alert, rules.board),
        image=_read_image(alert, rules),
    )


def build_incident_url(task: DeliveryTask, rules: LinkRules) -> str | None:
    """The page of the episode that a delivery is about; None where the relay's own address is not known."""
    if rules.public_url is None:
        return None
    return f"{rules.public_url}/incidents/{quote(task.incident_id, safe='')}?episode={task.episode}"


def build_list_url(rules: LinkRules, service: str = "") -> str | None:
    """The page that lists the open incidents, of one service where it is given."""
    if rules.public_url is None:
        return None
    query = {"state": "open", **({"service": service} if service else {})}
    return f"{rules.public_url}/incidents?{urlencode(query, errors='replace')}"


def remove_foreign_links(event: Event, rules: LinkRules) -> Event:
    """The event without the addresses of Prometheus and Alertmanager that lead to no allowed host."""
    if not rules.allow_hosts:
        return event
    alerts = (replace(alert, generator_url=_check_host(alert.generator_url, rules) or "") for alert in event.alerts)
    return replace(event, alerts=tuple(alerts), external_url=_check_host(event.external_url, rules) or "")


def _read_annotation(alert: Alert, name: str, rules: LinkRules) -> str | None:
    return _check_host(alert.annotations.get(name, ""), rules)


def _read_image(alert: Alert, rules: LinkRules) -> str | None:
    """A page loads a picture unasked, so it needs more than a link: https, and a host that the configuration names."""
    url = _read_annotation(alert, "image_url", rules) if rules.allow_hosts else None
    return url if url and url.startswith("https://") else None


def _check_host(address: str, rules: LinkRules) -> str | None:
    """An address that an alert brings, where it is one and may be followed."""
    url = _parse_trusted_url(address)
    if url is None or (rules.allow_hosts and urlsplit(url).hostname not in rules.allow_hosts):
        return None
    return url


def _build_board_link(alert: Alert, board: str | None) -> str | None:
    """The board, filtered to what the alert is about; None for an alert that is about neither a key nor a service."""
    name = alert.labels.get("target") or alert.labels.get("service")
    if board is None or not name:
        return None
    url = _parse_trusted_url(f"{board}/?q={quote(name, safe='', errors='replace')}")
    return url if url and len(url) <= MAX_SHORT_URL else None


def _expand_template(template: str | None, alert: Alert, accepted_at: datetime) -> str | None:
    if template is None:
        return None
    try:
        computed = {
            "alertname_lower": alert.labels.get("alertname", "").lower(),
            "from_ms": _format_milliseconds(alert.starts_at - _DASHBOARD_MARGIN),
            "to_ms": _format_milliseconds((alert.ends_at or accepted_at) + _DASHBOARD_MARGIN),
        }
        return _fill_template(template, {**alert.labels, **computed})
    except (ValueError, OverflowError):  # a time at the edge of the calendar, a label that is no text
        return None


def _fill_template(template: str, values: Mapping[str, str]) -> str | None:
    """The link, or None if it cannot be one or a value would steer it: a browser takes `..` for the folder above."""
    url = _parse_trusted_url(uritemplate.expand(_drop_empty_parameters(template, values), dict(values)))
    if url is None or {".", ".."}.intersection(re.split(r"[/\\]", unquote(urlsplit(url).path))):
        return None
    return url


def _drop_empty_parameters(template: str, values: Mapping[str, str]) -> str:
    """The template without the parameters whose label is not there: Grafana takes an empty variable for a value."""
    head, mark, rest = template.partition("?")
    query, sharp, fragment = rest.partition("#")
    parameters = [
        pair for pair in query.split("&") if not (only := _LABEL_PARAMETER.fullmatch(pair)) or values.get(only[1])
    ]
    return head + mark + "&".join(parameters) + sharp + fragment


def _format_milliseconds(moment: datetime) -> str:
    return str(int(moment.timestamp() * 1000))


def _parse_trusted_url(url: str) -> str | None:
    """The URL in ASCII, or None if it is not http(s) with a plain host, or is anything a browser may misread."""
    if len(url) > MAX_URL or _CONTROL.search(url):
        return None
    try:
        parts = urlsplit(url)
        if not _has_plain_host(parts):
            return None
        return quote_url(url)
    except ValueError:  # a port over 65535, half an IPv6 address, half a surrogate pair
        return None


def _has_plain_host(parts: SplitResult) -> bool:
    return (
        parts.scheme in ("http", "https")
        and "@" not in parts.netloc
        and _HOST.fullmatch(parts.hostname or "") is not None
        and parts.port != 0
    )
