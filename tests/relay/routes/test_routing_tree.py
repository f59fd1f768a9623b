"""Which receivers an alert reaches, as the real amtool says it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from services.relay.routes import alertmanager as routing_tree
from services.relay.routes.alertmanager import RouteState, TreeError, list_chosen, parse_tree, route_alert

RECEIVERS = ["ops", "kms-critical", "kms-security", "direct", "nobody"]
ROUTES = r"""
receiver: ops
routes:
  - {matchers: ['alertname="Watchdog"'], receiver: direct, continue: true}
  - matchers: ['alertname=~"KMS.*"']
    receiver: kms-security
    routes:
      - {match: {severity: critical}, receiver: kms-critical, continue: true}
      - match_re: {service: 'led.*|va(ult)?'}
        routes:
          - {matchers: ['severity != "critical"', 'env =~ "prod|stag(e|ing)"']}
          - {matchers: [env=test], receiver: nobody}
      - {matchers: ['{severity="critical",team="x,y"}'], receiver: direct}
  - {matchers: ['alertname!~"KMS.*"', 'team=""'], receiver: nobody, continue: true, mute_time_intervals: [nights]}
  - {receiver: direct, matchers: ['note="a \"b\" \\ c"']}
"""
LABELS = {
    "alertname": ["KMSCryptoNotReady", "Watchdog", "xKMS", "Node"],
    "severity": ["critical", "warning", ""],
    "service": ["ledger", "vault", "v", "other"],
    "env": ["prod", "staging", "test", ""],
    "team": ["x,y", "", "z"],
    "note": ['a "b" \\ c', ""],
}


def amtool(file: Path, labels: Mapping[str, str]) -> list[str]:
    """The receivers. It is asked for with matchers, so that it takes any value."""
    quoted = {name: value.replace("\\", r"\\").replace('"', r"\"") for name, value in labels.items()}
    arguments = [f'{name}="{value}"' for name, value in quoted.items()]
    command = ["amtool", "config", "routes", "test", f"--config.file={file}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip().split(",")


def configuration(route: Any) -> str:
    receivers: list[dict[str, Any]] = [{"name": name} for name in RECEIVERS]
    receivers[1]["webhook_configs"] = [{"url": "http://relay:9912/alerts"}]
    return yaml.safe_dump(
        {"route": route, "receivers": receivers, "time_intervals": [{"name": "nights", "time_intervals": []}]}
    )


def build_random(random: Random, depth: int = 0) -> dict[str, Any]:
    """A route as anybody may write it."""
    route: dict[str, Any] = {"receiver": random.choice(RECEIVERS)} if depth == 0 or random.random() < 0.6 else {}
    if depth:
        name = random.choice(["alertname", "severity", "env"])
        value = random.choice(LABELS[name])
        kind = random.choice(["match", "match_re", "matchers"])
        operator = random.choice(["=", "!=", "=~", "!~"])
        route[kind] = [f'{name}{operator}"{value}"'] if kind == "matchers" else {name: value}
        route["continue"] = random.random() < 0.4
    if depth < 3:
        route["routes"] = [build_random(random, depth + 1) for _ in range(random.randrange(1, 4))]
    return route


def test_alerts_reach_the_receivers_that_amtool_names(tmp_path: Path) -> None:
    random = Random(16)  # noqa: S311
    for number in range(24):
        text = configuration(yaml.safe_load(ROUTES) if number % 2 else build_random(random))
        (tmp_path / "alertmanager.yml").write_text(text)
        labels = {name: value for name, values in LABELS.items() if (value := random.choice(values))}
        found = [route.receiver for route in list_chosen(route_alert(parse_tree(text), labels))]
        assert found == amtool(tmp_path / "alertmanager.yml", labels), (text, labels)


def test_each_route_says_what_became_of_the_alert() -> None:
    tree = parse_tree(configuration(yaml.safe_load(ROUTES)))
    assert tree.receivers["kms-critical"] == ["webhook"]
    assert tree.receivers["ops"] == []
    verdict = route_alert(tree, {"alertname": "KMSTest", "severity": "critical", "service": "ledger", "env": "prod"})
    watchdog, kms, third, fourth = verdict.children
    assert (verdict.state, watchdog.state) == (RouteState.MATCHED, RouteState.FAILED)
    assert watchdog.failed == ('alertname="Watchdog"',)
    assert kms.state is RouteState.MATCHED
    critical, services, team = kms.children
    assert (critical.state, critical.route.path) == (RouteState.CHOSEN, "route.routes[1].routes[0]")
    # Its children fail, so it takes the alert itself.
    assert (services.state, services.route.receiver, [each.failed for each in services.children]) == (
        RouteState.CHOSEN,
        "kms-security",
        [('severity != "critical"',), ("env=test",)],
    )
    assert [each.state for each in (team, third, fourth)] == [RouteState.SKIPPED] * 3
    assert third.route.intervals == ("nights",)


def test_what_cannot_be_shown_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = parse_tree(
        configuration({"receiver": "ops", "routes": [{"matchers": ["a=b", "?"], "receiver": "direct"}]})
    )
    assert list_chosen(route_alert(unreadable, {"a": "c"})) == [unreadable.root]  # it fails anyway
    with pytest.raises(TreeError, match=r"route.routes\[0\] has a condition"):
        route_alert(unreadable, {"a": "b"})
    deep: dict[str, Any] = {"receiver": "ops"}
    for _ in range(60):
        deep = {"receiver": "ops", "routes": [deep]}
    wide = {"receiver": "ops", "routes": [{"receiver": "ops"} for _ in range(2000)]}
    for text in (
        "",
        "- 1",
        "route: {}",
        "receivers: 1",
        "a: [",
        *map(configuration, ({"match": 1}, [], {"routes": 1})),
    ):
        with pytest.raises(TreeError, match="cannot be read as that of an Alertmanager"):
            parse_tree(text)
    for route in (deep, wide):
        with pytest.raises(TreeError, match="over 2000 routes"):
            parse_tree(configuration(route))
    monkeypatch.setattr(routing_tree, "MAX_BYTES", 10)
    with pytest.raises(TreeError, match="over 10 characters"):
        parse_tree(configuration({"receiver": "ops"}))


def build_bomb(levels: int) -> Any:
    """Lists of nine aliases each, which `yaml.safe_dump` writes in a few hundred bytes."""
    bomb: Any = ["x"] * 9
    for _ in range(levels):
        bomb = [bomb] * 9
    return bomb


def test_aliases_and_directives_of_an_alertmanager_are_refused() -> None:
    bomb = build_bomb(4)
    for route in (
        {"receiver": "ops", "mute_time_intervals": bomb},
        {"receiver": bomb},
        {"receiver": "ops", "routes": [{"receiver": "ops", "match": {"a": bomb}}]},
        {"receiver": "ops", "other": {"key": bomb}},
    ):
        with pytest.raises(TreeError, match="cannot be read"):
            parse_tree(configuration(route))
    directives = "".join(f"%TAG !{n}! tag:\n" for n in range(3))  # each is compared with all before it
    with pytest.raises(TreeError, match="cannot be read"):
        parse_tree(f"# a comment\n{directives}---\n{configuration({'receiver': 'ops'})}")


def test_every_value_of_an_alertmanager_is_text() -> None:
    text = (
        "{route: {receiver: 1_0, routes: null, match: {a: 0x1f, b: 2026-01-01}}, receivers: [{name: 1_0, x_configs: }]}"
    )
    tree = parse_tree(text)
    assert (tree.root.receiver, tree.receivers) == ("1_0", {"1_0": []})
    assert [each.text for each in tree.root.conditions] == ['a="0x1f"', 'b="2026-01-01"']
    assert tree.routed == {"1_0"}
