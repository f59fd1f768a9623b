"""Adds keypulse's routes, receivers and inhibitions to the file of an Alertmanager that exists, or says what collides.

The root route stays as it is. keypulse's routes stand before the first route that would keep one of its alerts, so the
alerts of others go where they went. A second merge finds everything there, and changes nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from services.relay.alertmanager_file.routes import AlertmanagerRoute, Labels, find_named, plan_routes
from services.relay.alertmanager_file.yaml_insertion import UneditableError, insert_items, split_items
from shared.config.yaml_file import FAST_LOADER, parse_yaml

_OPS: Final = files("ops")
_URL: Final = "http://127.0.0.1:9912/alerts"
_TOKEN_FILE: Final = "/run/secrets/relay_token"  # noqa: S105  # the path of one
_DIRECT: Final = "direct"
"""The fragment's receiver for the relay's own alerts. A merge takes one that exists, and reaches people already."""

_HEARTBEAT: Final = {"alertname": "Watchdog", "severity": "none"}
_GOES_ON: Final = (
    "receiver: watchdog\n",
    "receiver: watchdog\n      continue: true  # to the switch that is here already\n",
)

Entry = dict[str, Any]


class CollisionError(Exception):
    """Nothing can be merged; `lines` has a sentence for each reason."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Destination:
    """Where Alertmanager sends keypulse's alerts."""

    url: str
    """Of the relay, with `/alerts`."""
    token_file: str
    """As Alertmanager opens it."""
    direct: str | None = None
    """The receiver for the relay's own alerts, which is in the file already; None takes the root route's."""


class _Receiver(BaseModel):
    name: str


class _File(BaseModel):
    """The shape that a merge relies on."""

    model_config = ConfigDict(extra="ignore")

    route: AlertmanagerRoute
    receivers: tuple[_Receiver, ...]


def merge(text: str, destination: Destination) -> str:
    """The text of an Alertmanager file with keypulse's routing in it. Every byte that was there is still there.

    Args:
        text: the file.
        destination: of keypulse's alerts.

    Raises:
        ConfigurationError: the text is no YAML.
        ValueError: it is no file of Alertmanager; says what was expected.
        CollisionError: something in it collides.
    """
    document = parse_yaml(text, "the file")
    file = _check_shape(document)
    direct = destination.direct or file.route.receiver
    fragment = _build_fragment(destination, direct)
    ours: Entry = _load(fragment)
    found = _find_routes(
        document["route"].get("routes") or [], ours["route"]["routes"], None if destination.direct else direct
    )
    if any(find_named(route, [_HEARTBEAT], label) for route in file.route.routes for label in _HEARTBEAT):
        fragment = fragment.replace(*_GOES_ON)
        ours = _load(fragment)
    receivers = [receiver for receiver in ours["receivers"] if receiver["name"] != _DIRECT]

    plan = plan_routes(
        file.route.routes,
        [AlertmanagerRoute.model_validate(route) for route in ours["route"]["routes"]],
        found,
        _read_alerts(),
    )
    collisions = [*_compare_receivers(document["receivers"], receivers), *plan.collisions]
    if any(ours["route"]["routes"][number]["receiver"] == direct for number in plan.missing):
        collisions += _check_direct(document["receivers"], receivers, direct)
    if collisions:
        raise CollisionError(collisions)

    names = {receiver["name"] for receiver in document["receivers"]}
    rules = [_sort(rule) for rule in document.get("inhibit_rules") or []]
    missing: dict[tuple[str, ...], Sequence[int]] = {
        ("route", "routes"): plan.missing,
        ("inhibit_rules",): [n for n, rule in enumerate(ours["inhibit_rules"]) if _sort(rule) not in rules],
        ("receivers",): [
            n for n, each in enumerate(ours["receivers"]) if each in receivers and each["name"] not in names
        ],
    }
    try:
        return _insert(text, fragment, missing, plan.index)
    except UneditableError as error:
        raise CollisionError([str(error)]) from None
    except yaml.YAMLError:  # of libyaml; Alertmanager's own parser is a translation of it
        raise ValueError("is YAML that Alertmanager does not take, expected a file that amtool accepts") from None


def _load(text: str) -> Any:
    return yaml.load(text, FAST_LOADER)  # noqa: S506  # a safe loader


def _check_shape(document: Entry) -> _File:
    if "kind" in document and "route" not in document:
        raise ValueError(f"is a Kubernetes {document['kind']}, expected the alertmanager.yaml that it holds")
    try:
        file = _File.model_validate(document)
        key = "" if file.route.receiver else "route.receiver"
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
    if key:
        raise ValueError(f"is no file of Alertmanager because of {key}, expected one that amtool accepts")
    return file


def _build_fragment(destination: Destination, direct: str) -> str:
    """fragment.yml with the destination in it."""
    text = (_OPS / "alertmanager/fragment.yml").read_text(encoding="utf-8")
    values = {_URL: destination.url, _TOKEN_FILE: destination.token_file, f"receiver: {_DIRECT}": direct}
    for placeholder, value in values.items():
        key, colon, _ = placeholder.rpartition(": ")
        text = text.replace(placeholder, key + colon + json.dumps(value, ensure_ascii=False))
    return text


@cache
def _read_alerts() -> Sequence[Labels]:
    """The certain labels of each of keypulse's alerts."""
    return [
        {"alertname": rule["alert"], "severity": rule["labels"]["severity"]}
        for file in (_OPS / "prometheus/rules").iterdir()
        for group in _load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def _find_routes(theirs: Sequence[Entry], ours: Sequence[Entry], any_receiver: str | None) -> dict[int, int]:
    """The number of each of keypulse's routes that is there already → its index. One that continues is the same.

    Args:
        theirs: the file's.
        ours: keypulse's.
        any_receiver: a route of keypulse's to this receiver may lead to another one by now.
    """

    def is_same(other: Entry, route: Entry) -> bool:
        free = {"continue": None} | ({"receiver": None} if route["receiver"] == any_receiver else {})
        return {**other, **free} == {**route, **free}

    found = {}
    for number, route in enumerate(ours):
        index = next((index for index, other in enumerate(theirs) if is_same(other, route)), None)
        if index is not None:
            found[number] = index
    return found


def _compare_receivers(theirs: Sequence[Entry], ours: Sequence[Entry]) -> Iterator[str]:
    """A sentence for each receiver that has keypulse's name and something else in it. More beside it is welcome."""
    names = {receiver["name"]: receiver for receiver in theirs}
    for receiver in ours:
        other = names.get(receiver["name"], receiver)
        for kind, entries in receiver.items():
            there = other.get(kind) or []
            if kind == "name" or all(any(_contains(each, entry) for each in there) for entry in entries):
                continue
            exists = f"receiver {other['name']} exists"
            if not there:
                yield f"{exists} without keypulse's {kind}: rename it, or remove it"
                continue
            differences = [list(_list_differences(each, entries[0])) for each in there]
            yield f"{exists}, and its {kind} differ: {'; '.join(min(differences, key=len)[:2])}; correct either"


def _list_differences(theirs: object, ours: object, path: str = "") -> Iterator[str]:
    """Both values of each key that differs. Of an address that is not a relay's, the host alone: it may be a secret."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key, value in ours.items():
            yield from _list_differences(theirs.get(key), value, f"{path}.{key}".removeprefix("."))
    elif theirs != ours:
        value = _mask_url(str(theirs)) if path == "url" and theirs is not None else theirs
        yield f"{path} is {json.dumps(value, ensure_ascii=False)}, expected {json.dumps(ours)}"


def _mask_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        path = parts.path if parts.path.endswith("/alerts") else "/…"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}"
    except ValueError:
        return "no URL"


def _contains(theirs: object, ours: object) -> bool:
    """Whether a value has all of another one, such as a webhook that also names a proxy."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(key in theirs and _contains(theirs[key], value) for key, value in ours.items())
    return theirs == ours


def _check_direct(theirs: Sequence[Entry], ours: Sequence[Entry], direct: str) -> list[str]:
    """A sentence if the relay's own alerts would reach nobody."""
    names = [each["name"] for each in theirs]
    if direct not in names:
        return [f"there is no receiver {direct}, expected with --direct one of {', '.join(names)}"]
    receiver = next(each for each in theirs if each["name"] == direct)
    if receiver.keys() - {"name"} and direct not in {each["name"] for each in ours}:
        return []
    return [f"receiver {direct} cannot report on the relay itself: name one that reaches people, with --direct"]


def _sort(rule: Mapping[str, Any]) -> Entry:
    """An inhibition whose lists are in order, since their order means nothing."""
    return {key: sorted(map(str, value)) if isinstance(value, list) else value for key, value in rule.items()}


def _insert(text: str, fragment: str, missing: Mapping[tuple[str, ...], Sequence[int]], index: int) -> str:
    """The text with what is missing of the fragment's lists; the routes before that index."""
    expected = _load(text)
    if any(missing.values()) and _load(f"{text}\n") != expected:
        raise UneditableError(
            "the file ends within a text block, to which a further line would belong; end it with a newline"
        )
    for path, numbers in missing.items():
        if not numbers:
            continue
        all_items = split_items(fragment, path)
        items = [all_items[number] for number in numbers]
        parent = expected["route"] if path[0] == "route" else expected
        there = parent.get(path[-1]) or []
        at = index if path[0] == "route" else len(there)
        text = insert_items(text, path, at if at < len(there) else None, items)
        parent[path[-1]] = [*there[:at], *(_load(item)[0] for item in items), *there[at:]]
    if _load(text) != expected:
        raise UneditableError("the file repeats keys or parts of itself; merge ops/alertmanager/fragment.yml by hand")
    return text
