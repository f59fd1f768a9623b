"""`alertmanager --merge`: adds keypulse's routes, receivers and inhibitions to a file of Alertmanager.

Or it says what collides. The root route stays as it is. keypulse's routes stand before the first route that would keep
one of its alerts, so the alerts of others go where they went
(https://prometheus.io/docs/alerting/latest/configuration/#route). Of an alert, only its labels `alertname` and
`severity` are certain; a condition on another label may be fulfilled. A second merge changes nothing. No byte of the
file changes: a library that parses YAML and writes it again changes quotes, folds and indents, and may move a comment
to another entry. So the file is parsed for positions only. A list in brackets gets JSON.
"""

import json
import re
import sys
import textwrap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, cast
from urllib.parse import urlsplit

import click
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from services.relay.cli import add_config_option
from services.relay.config import RelaySettings
from services.relay.intake.routing import Matcher, parse_matcher, quote_value
from shared.config.errors import ConfigurationError
from shared.config.settings import Address, check_http_url
from shared.config.yaml_file import FAST_LOADER, parse_yaml
from shared.process.command_line import ParsedOption, load_settings_or_exit, parse_option_or_exit

Labels = Mapping[str, str]
LISTED: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^",])+', re.DOTALL)
"""One matcher among several; a comma in quotes separates nothing. A quote that is not closed takes the rest: to look
for its end again at each further quote would take seconds."""
_NAME: Final = re.compile(r"\w+")
_SOMETHING_ELSE: Final = "SomethingElse"
"""Stands for every alert that is not keypulse's."""


class AlertmanagerRoute(BaseModel):
    """A route, as far as it decides where an alert goes."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    receiver: str = ""
    match: dict[str, str] = {}
    match_re: dict[str, str] = {}
    matchers: Annotated[tuple[str, ...], BeforeValidator(lambda value: value or ())] = ()
    passes_on: bool = Field(default=False, alias="continue")
    """Whether an alert that matches goes to the routes after this one, too."""
    routes: Annotated[tuple["AlertmanagerRoute", ...], BeforeValidator(lambda value: value or ())] = ()


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What is missing, and where it belongs."""

    missing: Sequence[int]
    """The numbers of keypulse's routes that are not there."""
    index: int
    """Before which route they belong."""
    collisions: Sequence[str]
    """A sentence for each route that keypulse's cannot stand beside."""


def plan_routes(
    theirs: Sequence[AlertmanagerRoute],
    ours: Sequence[AlertmanagerRoute],
    found: Mapping[int, int],
    alerts: Sequence[Labels],
) -> RoutePlan:
    """Where keypulse's routes belong: before the first route of others that keeps one of its alerts.

    Args:
        theirs: all routes of the file, keypulse's included.
        ours: keypulse's.
        found: the number of each of keypulse's routes that is there already → its index.
        alerts: the labels of keypulse's alerts.
    """
    others = {index: route for index, route in enumerate(theirs) if index not in found.values()}
    keeping = (index for index, route in others.items() if find_stopped(route, alerts))
    first = min([next(keeping, len(theirs)), *found.values()])
    collisions: dict[int, str] = {}
    for number, own_index in found.items():
        own = [labels for labels in alerts if may_match(ours[number], labels)]
        for index in (index for index in others if index < own_index):
            if name := find_stopped(others[index], own):
                collisions[index] = (
                    f"route.routes[{index}] keeps {name} from keypulse's route.routes[{own_index}]: "
                    "move it below, or give it `continue: true`"
                )
    stopped = [labels for labels in alerts if any(find_stopped(route, [labels]) for route in ours)]
    for index in (index for index in others if index >= first):
        named = [
            labels for labels in _list_named(others[index]) if any(find_stopped(route, [labels]) for route in ours)
        ]
        if name := find_named(others[index], [*stopped, *named]):
            collisions.setdefault(
                index,
                f"route.routes[{index}] takes {name} by its name, and would get it no longer: "
                "remove it, or move it to the top with `continue: true`",
            )
    missing = [number for number in range(len(ours)) if number not in found]
    return RoutePlan(missing, first, list(collisions.values()))


def may_match(route: AlertmanagerRoute, labels: Labels) -> bool:
    """Whether a route may match an alert that has these labels, and others."""
    return all(matcher.label not in labels or matcher.matches(labels) for matcher in _parse_matchers(route))


def find_stopped(route: AlertmanagerRoute, alerts: Iterable[Labels]) -> str | None:
    """The name of an alert that may not get past a route; None if all do."""
    if route.passes_on:
        return None
    return next((labels["alertname"] for labels in alerts if may_match(route, labels)), None)


def find_named(route: AlertmanagerRoute, alerts: Sequence[Labels], label: str = "alertname") -> str | None:
    """The name of an alert that a route, or one below it, takes by its name or by that label; None for none."""
    for each in _walk(route):
        by_label = [matcher for matcher in _parse_matchers(each) if matcher.label == label]
        if not all(matcher.matches({label: _SOMETHING_ELSE}) for matcher in by_label):
            for labels in alerts:
                if may_match(each, labels):
                    return labels["alertname"]
    return None


def _list_named(route: AlertmanagerRoute) -> list[Labels]:
    """The alerts that a route, or one below it, names; of a pattern what stands in it as text.

    An alert of somebody else whose name begins as keypulse's do is in none of keypulse's rules.
    """
    by_name = (matcher for each in _walk(route) for matcher in _parse_matchers(each) if matcher.label == "alertname")
    return [{"alertname": name} for matcher in by_name for name in _NAME.findall(matcher.value)]


def _walk(route: AlertmanagerRoute) -> Iterator[AlertmanagerRoute]:
    yield route
    for child in route.routes:
        yield from _walk(child)


def _parse_matchers(route: AlertmanagerRoute) -> Iterator[Matcher]:
    """The conditions of a route that can be parsed; another one may be fulfilled."""
    for text in iterate_conditions(route):
        try:
            yield parse_matcher(text)
        except ValueError:
            continue


def iterate_conditions(route: AlertmanagerRoute) -> Iterator[str]:
    """The conditions of a route in all three spellings, each as a matcher's text."""
    for label, value in route.match.items():
        yield f"{label}={quote_value(value)}"
    for label, value in route.match_re.items():
        yield f"{label}=~{quote_value(value)}"
    for listed in route.matchers:
        yield from LISTED.findall(listed.strip().removeprefix("{").removesuffix("}"))


_COMMENT: Final = re.compile(r"[ \t]*#[^\n]*\n?")
_BLANK: Final = re.compile(r"[ \t\r]*\n")


class UneditableError(Exception):
    """Nothing can be inserted there. The message is what to change by hand."""


@dataclass(frozen=True, slots=True)
class _Node:
    event: yaml.NodeEvent
    """A scalar, an alias, or the start of a list or a mapping."""
    children: tuple["_Node", ...]
    start: int
    """The index of its first character."""
    column: int
    """Of that character."""
    end: int
    """The index after its last character; after a block scalar's blank lines."""

    @property
    def is_flow(self) -> bool:
        """Whether it is a list or mapping in brackets."""
        return bool(getattr(self.event, "flow_style", False))

    def find_value(self, key: str) -> "_Node | None":
        pairs = zip(self.children[::2], self.children[1::2], strict=True)
        return next((v for k, v in pairs if isinstance(k.event, yaml.ScalarEvent) and k.event.value == key), None)


def insert_items(text: str, path: Sequence[str], index: int | None, items: Sequence[str]) -> str:
    """The text with further items in a list.

    Args:
        text: a YAML document without errors.
        path: the keys of mappings that lead to the list. The last one is added where it is missing.
        index: before which item; None is the end.
        items: each the text of one item, with its dash and the comments above it, not indented.

    Raises:
        UneditableError: the list is an alias, or null.
    """
    name = ".".join(path)
    mapping = _find_mapping(text, path[:-1])
    node = mapping.find_value(path[-1])
    if node is None:
        return _add_key(text, mapping, path[-1], items)
    if not isinstance(node.event, yaml.SequenceStartEvent):
        raise UneditableError(f"{name} is no list of its own: remove it, or write it out")
    if node.is_flow:
        return _insert_into_flow(text, node, index, items)
    dashes, column = _find_dashes(text, node)
    at = _find_end(text, node.end, column) if index is None else _find_item_start(text, dashes[index], column)
    return _insert_block(text, at, "".join(items), column)


def split_items(text: str, path: Sequence[str]) -> list[str]:
    """The text of each item of a list that is written with dashes, as `insert_items` takes it."""
    node = _find_mapping(text, path[:-1]).find_value(path[-1])
    if node is None:
        raise KeyError(path)
    dashes, column = _find_dashes(text, node)
    starts = [_find_item_start(text, dash, column) for dash in dashes]
    ends = [*starts[1:], _find_end(text, node.end, column)]
    return [textwrap.dedent(text[start:end]).strip("\n") + "\n" for start, end in zip(starts, ends, strict=True)]


def _find_mapping(text: str, path: Sequence[str]) -> _Node:
    node = _parse(text)
    for key in path:
        value = node.find_value(key)
        if value is None or not isinstance(value.event, yaml.MappingStartEvent):
            raise UneditableError(f"{key} is no mapping of its own: write it out")
        node = value
    return node


def _choose_loader(text: str) -> Any:
    """Whose marks are positions in the text: libyaml does not count a byte order mark."""
    return yaml.SafeLoader if text.startswith("\ufeff") else FAST_LOADER


def _parse(text: str) -> _Node:
    events = yaml.parse(text, _choose_loader(text))

    def build(event: yaml.NodeEvent) -> _Node:
        first, last = cast("yaml.Mark", event.start_mark), cast("yaml.Mark", event.end_mark)
        children: list[_Node] = []
        if isinstance(event, yaml.CollectionStartEvent):
            while isinstance(following := next(events), yaml.NodeEvent):
                children.append(build(following))
            if event.flow_style:
                last = cast("yaml.Mark", following.end_mark)
        # What is not in brackets ends, for the parser, after comments that belong elsewhere.
        end = children[-1].end if children and not getattr(event, "flow_style", False) else last.index
        return _Node(event, tuple(children), first.index, first.column, end)

    return build(next(event for event in events if isinstance(event, yaml.NodeEvent)))


def _find_dashes(text: str, node: _Node) -> tuple[list[int], int]:
    """The index of each item's dash, which is the last one before its content, and the column of all of them."""
    tokens = yaml.scan(text, _choose_loader(text))
    marks = [cast("yaml.Mark", token.start_mark) for token in tokens if isinstance(token, yaml.BlockEntryToken)]
    indexes = [mark.index for mark in marks]
    found = [bisect_left(indexes, child.start) - 1 for child in node.children]
    return [indexes[number] for number in found], marks[found[0]].column


def _insert_into_flow(text: str, node: _Node, index: int | None, items: Sequence[str]) -> str:
    values = [json.dumps(yaml.safe_load(item)[0], ensure_ascii=False) for item in items]
    if index is not None:
        at = node.children[index].start
        return text[:at] + "".join(f"{value}, " for value in values) + text[at:]
    if node.children:
        at = node.children[-1].end
        return text[:at] + "".join(f", {value}" for value in values) + text[at:]
    at = node.end - 1  # of the bracket
    return text[:at] + ", ".join(values) + text[at:]


def _add_key(text: str, mapping: _Node, key: str, items: Sequence[str]) -> str:
    if mapping.is_flow:
        values = [yaml.safe_load(item)[0] for item in items]
        at = mapping.children[-1].end
        return f"{text[:at]}, {json.dumps(key)}: {json.dumps(values, ensure_ascii=False)}{text[at:]}"
    column = mapping.children[0].column
    block = f"{key}:\n" + textwrap.indent("".join(items), "  ")
    if column == 0 and text[mapping.end - 1] != "\n":  # after a block scalar the line would belong to that
        block = "\n" + block
    return _insert_block(text, _find_end(text, mapping.end, column), block, column)


def _insert_block(text: str, at: int, block: str, column: int) -> str:
    """Lines, indented, before the line that begins at an index."""
    newline = "\r\n" if "\r\n" in text else "\n"
    before = text[:at] if text[:at].endswith("\n") else text[:at] + newline
    return before + textwrap.indent(block, " " * column).replace("\n", newline) + text[at:]


def _find_line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _find_item_start(text: str, dash: int, column: int) -> int:
    """Where an item begins: at the comments directly above its dash, which are about it."""
    at = _find_line_start(text, dash)
    while at > 0:
        above = _find_line_start(text, at - 1)
        line = text[above:at]
        if not _COMMENT.fullmatch(line) or line.index("#") > column:
            break
        at = above
    return at


def _find_end(text: str, end: int, column: int) -> int:
    """Where a list or a mapping ends: after the comments that are indented deeper, which are about its last entry."""
    at = end if text[end - 1] == "\n" else _find_next_line(text, end)
    for start, line in _iterate_lines(text, at):
        if _COMMENT.fullmatch(line) and line.index("#") > column:
            at = start + len(line)
        elif not _BLANK.fullmatch(line):
            break
    return at


def _iterate_lines(text: str, at: int) -> Iterator[tuple[int, str]]:
    while at < len(text):
        following = _find_next_line(text, at)
        yield at, text[at:following]
        at = following


def _find_next_line(text: str, at: int) -> int:
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline + 1


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
    url: str
    """Of the relay, with `/alerts`."""
    token_file: str
    """As Alertmanager opens it."""
    direct: str | None = None
    """The receiver for the relay's own alerts, which is in the file already; None takes the root route's."""
    takes_all: bool = False
    """Whether the relay gets every alert but keypulse's own, in place of keypulse's own."""


class _Receiver(BaseModel):
    name: str


class _File(BaseModel):
    """The shape that a merge relies on."""

    model_config = ConfigDict(extra="ignore")

    route: AlertmanagerRoute
    receivers: tuple[_Receiver, ...]


def merge(text: str, destination: Destination) -> str:
    """The text of an Alertmanager file with keypulse's routing in it. Every byte that was there is still there.

    Raises:
        ConfigurationError: the text is no YAML.
        ValueError: it is no file of Alertmanager; says what was expected.
        CollisionError: something in it collides.
    """
    document = parse_yaml(text, "the file")
    file = _check_shape(document)
    direct = destination.direct or file.route.receiver
    fragment = _build_fragment(destination, direct)
    ours: Entry = {"inhibit_rules": [], **_load(fragment)}
    found = _find_routes(
        document["route"].get("routes") or [], ours["route"]["routes"], None if destination.direct else direct
    )
    named = (find_named(route, [_HEARTBEAT], label) for route in file.route.routes for label in _HEARTBEAT)
    if not destination.takes_all and any(named):
        fragment = fragment.replace(*_GOES_ON)
        ours = _load(fragment)
    receivers = [receiver for receiver in ours["receivers"] if receiver["name"] != _DIRECT]

    plan = plan_routes(
        file.route.routes,
        [AlertmanagerRoute.model_validate(route) for route in ours["route"]["routes"]],
        found,
        _read_alerts(),
    )
    if destination.takes_all:  # all of its routes go on, so they take nothing from others
        plan = RoutePlan(plan.missing, min(found.values(), default=0), [])
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
    name = "all.yml" if destination.takes_all else "fragment.yml"
    text = (_OPS / "alertmanager" / name).read_text(encoding="utf-8")
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
    """The number of each of keypulse's routes that is there already → its index. One that continues is the same."""

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


_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml alertmanager --merge /etc/alertmanager/alertmanager.yml > merged.yml
  keypulse-relay --config relay.yml alertmanager --merge alertmanager.yml --all > merged.yml
  keypulse-relay alertmanager --merge alertmanager.yml --url http://relay:9912/alerts --token-file /run/secrets/relay_token
  kubectl get secret NAME -o jsonpath='{.data.alertmanager\\.yaml}' | base64 -d |
    keypulse-relay --config relay.yml alertmanager --merge - --direct on-call"""  # noqa: E501


_OWN_TAKEN: Final = "keypulse's alerts go to the relay, all others where they went; --all sends those to the relay, too"
_ALL_TAKEN: Final = (
    "every alert but keypulse's own goes to the relay, and on to your routes; one that none of them takes goes to the "
    "relay alone"
)


@click.command("alertmanager", short_help="Merge keypulse's routing into an Alertmanager file.", epilog=_EXAMPLES)
@click.option("--merge", "file", required=True, metavar="FILE", help="Alertmanager's file; - is standard input.")
@click.option(
    "--url",
    type=ParsedOption(check_http_url),
    help="Where Alertmanager reaches the relay, with /alerts; by default as the relay listens.",
)
@click.option("--token-file", help="The relay's token as Alertmanager opens it; auth.bearer_token_file by default.")
@click.option("--direct", help="The receiver in FILE for the relay's own alerts; the root route's by default.")
@click.option(
    "--all", "takes_all", is_flag=True, help="Send every alert but keypulse's own to the relay, without routes of KMS."
)
@add_config_option
def command(
    config: Path | None, file: str, url: str | None, token_file: str | None, direct: str | None, *, takes_all: bool
) -> None:
    """Print FILE with keypulse's routes, receivers and inhibitions in it. FILE itself does not change.

    They lead keypulse's alerts to the relay; all others go where they went. With --all it is the other way round: each
    other alert goes to the relay, and on to the routes of FILE; one that none of them takes goes to the relay alone.

    Where something collides, print nothing but what does, and exit with 1.
    """
    if url is None or token_file is None:
        settings = load_settings_or_exit(RelaySettings, config)
        url = url or parse_option_or_exit("--url", _build_url, settings.listen)
        token_file = token_file or str(settings.auth.bearer_token_file)
    destination = Destination(url, token_file, direct, takes_all)
    try:
        merged = parse_option_or_exit("--merge", partial(_merge_file, destination), file)
    except CollisionError as error:
        for line in error.lines:
            click.echo(f"{file}: {line}", err=True)
        sys.exit(1)
    click.echo(merged.encode(), nl=False)
    click.echo(_ALL_TAKEN if takes_all else _OWN_TAKEN, err=True)


def _build_url(listen: Address) -> str:
    if listen.host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        raise ValueError("expected the relay's address as Alertmanager reaches it, because it listens on all")
    return f"http://{listen}/alerts"


def _merge_file(destination: Destination, file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return merge(content.decode(), destination)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("expected UTF-8") from None
    except ConfigurationError as error:
        raise ValueError(error.lines[0]) from None
