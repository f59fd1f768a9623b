"""A claimed task → the message that a channel sends; two events of an incident → one; many incidents → a digest.

The links of an alert are templates filled with its labels, or its own annotations. What cannot become a link is left
out; it never delays an alert. Anybody who can write a rule or a metric writes labels and annotations, so their values
are always escaped, and only http(s) is let through.

The relay reads the events of a digest's members one after the other and condenses each to what its entry needs, so
that a digest of large groups costs little memory. The sending process builds the entries.
"""

import asyncio
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote, urlencode, urlsplit

import uritemplate

from services.relay.model import (
    Alert,
    Button,
    DeliveryTask,
    DigestEntry,
    DigestMember,
    Event,
    Links,
    Message,
    Status,
    collect_hashes,
    decode_event,
    encode_event,
    hash_fingerprint,
    limit_size,
    split_hashes,
)
from services.relay.text import (
    MAX_SHORT_URL,
    MAX_URL,
    clean_line,
    compute_status,
    find_worst_severity,
    format_alert_title,
    format_counts,
    format_title,
    list_group_links,
    quote_url,
    rank_severity,
    sanitize_url,
    sort_entries,
    truncate,
)
from shared.process.concurrency import LARGE_BYTES, run_in_thread_if_large

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
    """An alert's links. A template wins over the annotation of its meaning, unless the rules prefer annotations."""

    def choose(annotation: str, template: str | None) -> str | None:
        own = _check_host(alert.annotations.get(annotation, ""), rules)
        filled = _expand_template(template, alert, accepted_at)
        return (own or filled) if rules.prefers_annotation else (filled or own)

    # A page loads a picture unasked, so it needs more than a link: https, and a host that the configuration names.
    image = _check_host(alert.annotations.get("image_url", ""), rules) if rules.allow_hosts else None
    return Links(
        runbook=choose("runbook_url", rules.runbook),
        dashboard=choose("dashboard_url", rules.dashboard),
        board=_build_board_link(alert, rules.board),
        image=image if image and image.startswith("https://") else None,
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
            "from_ms": str(int((alert.starts_at - _DASHBOARD_MARGIN).timestamp() * 1000)),
            "to_ms": str(int(((alert.ends_at or accepted_at) + _DASHBOARD_MARGIN).timestamp() * 1000)),
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


def _parse_trusted_url(url: str) -> str | None:
    """The URL in ASCII, or None if it is not http(s) with a plain host, or is anything a browser may misread."""
    if len(url) > MAX_URL or _CONTROL.search(url):
        return None
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme in ("http", "https") and "@" not in parts.netloc and parts.port != 0
        return quote_url(url) if is_plain and _HOST.fullmatch(parts.hostname or "") else None
    except ValueError:  # a port over 65535, half an IPv6 address, half a surrogate pair
        return None


_MAX_PAIRS: Final = 30
"""Labels, and annotations, of the one alert that a condensed event keeps."""
_MAX_NAME: Final = 100
_MAX_VALUE: Final = 500
"""Characters of one of them."""
_MAX_SERVICE: Final = 60
_IN_ENTRY: Final = frozenset(("alertname", "env", "service", "severity", "title", "summary"))


def condense_event(event_json: bytes) -> tuple[str, bytes]:
    """How many alerts an event has, and the event with only the alert that its title is about."""
    event = decode_event(event_json)
    by_urgency = sorted(event.alerts, key=lambda alert: (alert.status is Status.RESOLVED, rank_severity(alert)))
    alert = next((each for each in by_urgency if format_alert_title(each)), next(iter(by_urgency), None))
    condensed = replace(
        event,
        alerts=() if alert is None else (_condense_alert(alert),),
        group_labels=_condense_pairs(event.group_labels),
        common_labels=_condense_pairs(event.common_labels),
        common_annotations={},
        unlisted_firing=b"",
        unlisted_resolved=b"",
    )
    return format_counts(event), encode_event(condensed)


def build_digest_message(task: DeliveryTask, link_rules: LinkRules) -> Message:
    """The message of a digest, its entries grouped by service.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    entries = sort_entries([_build_entry(member, link_rules) for member in task.members])
    status = Status.FIRING if any(entry.status is Status.FIRING for entry in entries) else Status.RESOLVED
    nothing: dict[str, str] = {}
    event = Event(
        receiver="",
        group_key="",
        status=status,
        alerts=(),
        group_labels=nothing,
        common_labels=nothing,
        common_annotations=nothing,
    )
    return Message(task, event, (), digest=tuple(entries), incident_url=build_list_url(link_rules))


def _build_entry(member: DigestMember, link_rules: LinkRules) -> DigestEntry:
    event = remove_foreign_links(decode_event(member.task.event_json), link_rules)
    links = tuple(build_links(alert, member.task.accepted_at, link_rules) for alert in event.alerts)
    message = Message(member.task, event, links)
    labels = {**event.common_labels, **event.group_labels}
    location = {name: labels[name] for name in ("env", "service") if labels.get(name)}
    env, service = (clean_line(location.get(name, "")) for name in ("env", "service"))
    return DigestEntry(
        title=format_title(message),
        status=compute_status(event),
        severity=find_worst_severity(event) or "",
        counts=member.counts,
        service=truncate(f"{service} ({env})" if service and env else service or env, _MAX_SERVICE),
        link=build_incident_url(member.task, link_rules)
        or _find_link(event)
        or next((sanitize_url(each.runbook) for each in links), None),
        # The open incidents of the service, or its alerts in Alertmanager.
        service_link=(build_list_url(link_rules, location["service"]) if "service" in location else None)
        or (_find_link(replace(event, group_labels=location)) if location else None),
        receiver_link=_find_link(replace(event, group_labels={})),
        is_named_only=member.is_named_only,
    )


def _find_link(event: Event) -> str | None:
    return next((link.url for link in list_group_links(event)), None)


def _condense_alert(alert: Alert) -> Alert:
    return replace(alert, labels=_condense_pairs(alert.labels), annotations=_condense_pairs(alert.annotations))


def _condense_pairs(pairs: Mapping[str, str]) -> dict[str, str]:
    short = [(name, value) for name, value in pairs.items() if len(name) <= _MAX_NAME]
    short.sort(key=lambda pair: pair[0] not in _IN_ENTRY)
    return {name: truncate(value, _MAX_VALUE) for name, value in short[:_MAX_PAIRS]}


def merge_events(older: Event, newer: Event) -> Event:
    """The newer event with each alert of the older one that it lacks, limited in size.

    So of {A and B fire}, {A is resolved, B fires} and {B fires} the last still contains that A is resolved. An alert
    that was resolved while it was silenced stays as Alertmanager sent it last.
    """
    newer_hashes = collect_hashes(newer)
    others = tuple(alert for alert in older.alerts if hash_fingerprint(alert.fingerprint) not in newer_hashes)
    firing = split_hashes(older.unlisted_firing) - newer_hashes
    resolved = split_hashes(older.unlisted_resolved) - newer_hashes
    remark = newer.remark or older.remark
    if not (others or firing or resolved):
        return replace(newer, remark=remark)
    labels, annotations = newer.common_labels, newer.common_annotations
    if firing or resolved:  # of these it is known no better
        labels, annotations = _intersect(labels, older.common_labels), _intersect(annotations, older.common_annotations)
    for alert in others:
        labels, annotations = _intersect(labels, alert.labels), _intersect(annotations, alert.annotations)
    return limit_size(
        replace(
            newer,
            alerts=newer.alerts + others,
            common_labels=labels,
            common_annotations=annotations,
            unlisted_firing=newer.unlisted_firing + b"".join(sorted(firing)),
            unlisted_resolved=newer.unlisted_resolved + b"".join(sorted(resolved)),
            remark=remark,
        )
    )


def _intersect(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in one.items() if other.get(key) == value}


async def build_message(
    task: DeliveryTask,
    link_rules: LinkRules,
    contacts: Mapping[str, str],
    zone: tzinfo = UTC,
    buttons: tuple[Button, ...] = (),
) -> Message:
    """The message of a task; the same at each attempt, so that a channel can find what it sent.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    if task.members:
        return await asyncio.to_thread(build_digest_message, task, link_rules)
    arguments = task.event_json, task.accepted_at, link_rules
    size = len(task.event_json)
    enrich = _enrich_event if size > LARGE_BYTES else _enrich_event_cached
    event, found = await run_in_thread_if_large(size, lambda: enrich(*arguments))
    incident_url = build_incident_url(task, link_rules)
    return Message(task, event, found, contacts, zone=zone, buttons=buttons, incident_url=incident_url)


def _enrich_event(event_json: bytes, accepted_at: datetime, rules: LinkRules) -> tuple[Event, tuple[Links, ...]]:
    event = remove_foreign_links(decode_event(event_json), rules)
    return event, tuple(build_links(alert, accepted_at, rules) for alert in event.alerts)


_enrich_event_cached = lru_cache(maxsize=128)(_enrich_event)
"""Several channels send the same event, one soon after the other."""
