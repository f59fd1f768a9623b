"""Where a person goes from an alert: its own annotations, or templates filled with its labels. Pure, and fails open.

Whatever cannot become a link is no link; an alert is never held back for one. Labels and annotations are written by
whoever can write a rule or a metric, so nothing of them gets into a link unescaped, and only http(s) gets out.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

import uritemplate

from services.relay.model import Alert, Event, Links

LONGEST: Final = 1900
"""Characters, as in channels/wording.py, which shows no longer link."""
_AROUND: Final = timedelta(minutes=30)
"""What a dashboard shows before the start and after the end."""
_COMPUTED: Final = "alertname_lower, from_ms, to_ms"
_VARIABLE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ONE_LABEL: Final = re.compile(r"[^={}]*=\{(\w+)\}")
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+(?:[/?#]|$)")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]")
_KEPT: Final = "%/:?#[]@!$&'()*+,;=~-._"
"""What has a meaning in a URL (RFC 3986); the rest is percent-encoded."""


@dataclass(frozen=True, slots=True)
class LinkRules:
    """What a person set. Templates are RFC 6570 with simple expansion; None makes no link."""

    runbook: str | None
    dashboard: str | None
    allow_hosts: Collection[str]
    """Hosts that an alert's own addresses may lead to, in lower case; empty allows every one."""


def check_template(template: str) -> str:
    """The template, where it can give a link, and only to its own place. Raises ValueError with what was expected."""
    if not _ORIGIN.match(template):
        raise ValueError("expected http(s)://HOST/…, without a variable or credentials in the host")
    names = re.findall(r"\{([^}]*)\}?", template)
    for name in names:
        if name[:1] and name[:1] in "+#./;?&":
            raise ValueError(f"{{{name}}} is not simple expansion, which escapes; write {{{name[1:]}}}")
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{{{name}}} is no variable; expected the name of a label, or one of {_COMPUTED}")
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", template)):
        raise ValueError("expected each { to have its }")
    if _filled(template, dict.fromkeys(names, "x")) is None:
        raise ValueError(
            f"gives no link, whatever the labels; expected at most {LONGEST} characters, a plain host, a port up to "
            "65535, no spaces, and no . or .. in its path"
        )
    return template


def links(alert: Alert, accepted_at: datetime, rules: LinkRules) -> Links:
    """An alert's links; an annotation `runbook_url` or `dashboard_url` wins over the template where it can be trusted.

    Args:
        alert: whose annotations and labels are used.
        accepted_at: the end of what the dashboard shows, while the alert fires.
        rules: what a person set.
    """
    return Links(
        runbook=_annotated(alert, "runbook_url", rules) or _expanded(rules.runbook, alert, accepted_at),
        dashboard=_annotated(alert, "dashboard_url", rules) or _expanded(rules.dashboard, alert, accepted_at),
    )


def narrowed(event: Event, rules: LinkRules) -> Event:
    """The event without the addresses of Prometheus and Alertmanager that lead to no allowed host."""
    if not rules.allow_hosts:
        return event
    alerts = (replace(alert, generator_url=_allowed(alert.generator_url, rules) or "") for alert in event.alerts)
    return replace(event, alerts=tuple(alerts), external_url=_allowed(event.external_url, rules) or "")


def _annotated(alert: Alert, name: str, rules: LinkRules) -> str | None:
    return _allowed(alert.annotations.get(name, ""), rules)


def _allowed(address: str, rules: LinkRules) -> str | None:
    """An address that an alert brings, where it is one and may be followed."""
    url = _safe(address)
    if url is None or (rules.allow_hosts and urlsplit(url).hostname not in rules.allow_hosts):
        return None
    return url


def _expanded(template: str | None, alert: Alert, accepted_at: datetime) -> str | None:
    if template is None:
        return None
    try:
        computed = {
            "alertname_lower": alert.labels.get("alertname", "").lower(),
            "from_ms": _milliseconds(alert.starts_at - _AROUND),
            "to_ms": _milliseconds((alert.ends_at or accepted_at) + _AROUND),
        }
        return _filled(template, {**alert.labels, **computed})
    except (ValueError, OverflowError):  # a time at the edge of the calendar, a label that is no text
        return None


def _filled(template: str, values: Mapping[str, str]) -> str | None:
    """The link, or None where it cannot be one or a value would steer it: a browser takes `..` for the folder above."""
    url = _safe(uritemplate.expand(_of(template, values), dict(values)))
    if url is None or {".", ".."}.intersection(re.split(r"[/\\]", unquote(urlsplit(url).path))):
        return None
    return url


def _of(template: str, values: Mapping[str, str]) -> str:
    """The template without the parameters whose label is not there: Grafana takes an empty variable for a value."""
    head, mark, rest = template.partition("?")
    query, sharp, fragment = rest.partition("#")
    kept = [pair for pair in query.split("&") if not (only := _ONE_LABEL.fullmatch(pair)) or values.get(only[1])]
    return head + mark + "&".join(kept) + sharp + fragment


def _milliseconds(moment: datetime) -> str:
    return str(int(moment.timestamp() * 1000))


def _safe(url: str) -> str | None:
    """The URL in ASCII, or None where it is not http(s) with a plain host, or is anything a browser may misread."""
    if len(url) > LONGEST or _CONTROL.search(url):
        return None
    try:
        parts = urlsplit(url)
        if not _plain(parts):
            return None
        encoded = quote(url, safe=_KEPT)
    except ValueError:  # a port over 65535, half an IPv6 address, half a surrogate pair
        return None
    return encoded if len(encoded) <= LONGEST else None


def _plain(parts: SplitResult) -> bool:
    return (
        parts.scheme in ("http", "https")
        and "@" not in parts.netloc
        and _HOST.fullmatch(parts.hostname or "") is not None
        and parts.port != 0
    )
