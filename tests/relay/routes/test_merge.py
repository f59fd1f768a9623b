"""What collides is said, and nothing is merged then."""

import re

import pytest
import yaml

from services.relay.routes.merge import CollisionError, Destination, merge
from shared.config.errors import ConfigurationError

DESTINATION = Destination("http://relay:9912/alerts", "/run/secrets/relay_token")
FILE = """\
route:
  receiver: ops
  routes: ROUTES
receivers:
  - {name: ops, slack_configs: [{api_url: "https://hooks.slack.com/services/a-secret", channel: "#ops"}]}
  - {name: nobody}
"""


def file_with(*routes: str, receivers: str = "", inhibitions: str = "") -> str:
    listed = "".join(f"\n    - {route}" for route in routes) or "[]"
    rules = f"inhibit_rules:\n{inhibitions}" if inhibitions else ""
    return FILE.replace("ROUTES", listed) + receivers + rules


def find_positions(text: str) -> list[str]:
    """The receivers of the routes, in their order."""
    return [route["receiver"] for route in yaml.safe_load(merge(text, DESTINATION))["route"]["routes"]]


OURS = ["watchdog", "kms-proof", "ops", "ops", "kms-security"]


@pytest.mark.parametrize(
    ("route", "is_before"),
    [
        ("{receiver: nobody}", True),
        ("{receiver: nobody, continue: true}", False),
        ("{receiver: nobody, matchers: ['severity=\"critical\"']}", True),
        ("{receiver: nobody, matchers: [severity = warning]}", True),
        ("{receiver: nobody, matchers: ['severity=info']}", False),
        ("{receiver: nobody, match: {severity: critical}}", True),
        ("{receiver: nobody, match: {severity: page}}", False),
        ("{receiver: nobody, match_re: {severity: page|critical}}", True),
        ("{receiver: nobody, match_re: {alertname: Node.*}}", False),
        ("{receiver: nobody, matchers: ['alertname=Watchdog']}", True),
        ("{receiver: nobody, matchers: ['alertname!~\"(KMS|Relay).*|Watchdog\"']}", False),
        ('{receiver: nobody, matchers: [\'{severity="critical",team="x,y"}\']}', True),
        ('{receiver: nobody, matchers: [\'{team="x,y",severity="info"}\']}', False),
        ("{receiver: nobody, matchers: ['team=\"a\"']}", True),  # a label that an alert of ours may have
        ("{receiver: nobody, matchers: ['severity=info', '?']}", False),
        ("{receiver: nobody, continue: true, match_re: {alertname: KMS.*}}", False),
    ],
)
def test_keypulses_routes_stand_before_the_first_one_that_keeps_one_of_its_alerts(route: str, is_before: bool) -> None:
    assert find_positions(file_with(route)) == ([*OURS, "nobody"] if is_before else ["nobody", *OURS])


def test_a_file_without_routes_and_inhibitions_gets_them() -> None:
    merged = yaml.safe_load(merge(FILE.replace("  routes: ROUTES\n", ""), DESTINATION))
    assert [route["receiver"] for route in merged["route"]["routes"]] == OURS
    assert len(merged["inhibit_rules"]) == 4
    assert [receiver["name"] for receiver in merged["receivers"]] == [
        "ops",
        "nobody",
        "kms-critical",
        "kms-security",
        "kms-proof",
        "watchdog",
    ]


def test_the_relays_address_and_token_file_are_in_every_receiver() -> None:
    special = Destination("https://relay.example.org/x?a=1#{b}: /alerts", '/etc/a "b" #c: d/tök\\en', "ops")
    merged = yaml.safe_load(merge(file_with(), special))
    webhooks = [receiver["webhook_configs"][0] for receiver in merged["receivers"] if "webhook_configs" in receiver]
    assert len(webhooks) == 4
    assert {webhook["url"] for webhook in webhooks} == {special.url}
    assert {webhook["http_config"]["authorization"]["credentials_file"] for webhook in webhooks} == {special.token_file}


def collisions(text: str, destination: Destination = DESTINATION) -> list[str]:
    with pytest.raises(CollisionError) as caught:
        merge(text, destination)
    lines = list(caught.value.lines)
    assert all("a-secret" not in line and len(line.split()) <= 25 for line in lines), lines
    return lines


def test_a_receiver_of_the_same_name_with_other_content_collides() -> None:
    receivers = "  - {name: kms-critical, slack_configs: [{channel: '#x', api_url: 'https://a-secret'}]}\n"
    receivers += "  - {name: watchdog}\n"
    assert collisions(file_with(receivers=receivers)) == [
        "receiver kms-critical exists without keypulse's webhook_configs: rename it, or remove it",
        "receiver watchdog exists without keypulse's webhook_configs: rename it, or remove it",
    ]


def test_a_receiver_that_also_pages_past_the_relay_is_still_keypulses() -> None:
    merged = merge(file_with(), DESTINATION)
    paging = merged.replace(
        "    # pagerduty_configs:\n    #   - routing_key_file", "    pagerduty_configs:\n      - routing_key_file"
    )
    proxied = paging.replace("        http_config:\n", "        http_config:\n          proxy_from_environment: true\n")
    assert len({merged, paging, proxied}) == 3
    assert merge(proxied, DESTINATION) == proxied


@pytest.mark.parametrize(
    ("route", "name"),
    [
        ("{receiver: nobody, matchers: ['alertname=~\"KMS.*\"']}", "KMS"),
        ("{receiver: nobody, match_re: {alertname: ^KMS.*}}", "KMS"),
        ("{receiver: nobody, match: {alertname: KMSHighLatency}}", "KMSHighLatency"),
        (
            "{receiver: nobody, matchers: ['team=\"a\"'], routes: [{receiver: nobody, match: {alertname: RelayDown}}]}",
            "RelayDown",
        ),
    ],
)
def test_a_route_that_takes_keypulses_alerts_by_name_collides(route: str, name: str) -> None:
    (line,) = collisions(file_with(route))
    assert re.match(rf"route\.routes\[0\] takes {name}\w* by its name, and would get it no longer: remove it", line)


@pytest.mark.parametrize(
    ("conditions", "name"),
    [
        ("match: {alertname: KMSLicenseExpired}", "KMSLicenseExpired"),
        ("matchers: ['alertname=~\"DHCP.*|RelayPort.*\"']", "RelayPort"),
    ],
)
def test_an_alert_of_others_that_is_named_as_keypulses_are_keeps_its_route_or_collides(
    conditions: str, name: str
) -> None:
    named = f"{{receiver: nobody, {conditions}}}"
    assert find_positions(file_with(named)) == ["nobody", *OURS]
    (line,) = collisions(file_with("{receiver: ops, match: {severity: critical}}", named))
    assert line.startswith(f"route.routes[1] takes {name} by its name, and would get it no longer")


def test_one_that_lets_them_go_on_behind_a_route_that_keeps_them_collides() -> None:
    behind = "{receiver: nobody, continue: true, match_re: {alertname: KMS.*}}"
    (line,) = collisions(file_with("{receiver: nobody, match: {severity: critical}}", behind))
    assert line.startswith("route.routes[1] takes KMS")


def test_a_route_that_was_put_before_keypulses_and_keeps_its_alerts_collides() -> None:
    merged = merge(file_with(), DESTINATION)
    first = "    - {receiver: nobody, match: {severity: critical}}\n    # keypulse's heartbeat"
    block = merge(file_with("{receiver: nobody}"), DESTINATION).replace("    # keypulse's heartbeat", first, 1)
    assert merge(merged, DESTINATION) == merged
    (line,) = collisions(block)
    assert re.match(
        r"route\.routes\[0\] keeps (KMS|Relay)\w+ from keypulse's route\.routes\[\d\]: move it below, or give it", line
    )


def test_a_changed_route_of_keypulse_collides() -> None:
    block = merge(file_with("{receiver: nobody}"), DESTINATION).replace("repeat_interval: 30m", "repeat_interval: 1h")
    (line,) = collisions(block)
    assert "takes KMS" in line


def test_what_was_taken_out_is_added_again_where_it_stood() -> None:
    merged = merge(file_with("{receiver: nobody}"), DESTINATION)
    start, end = merged.index("    # keypulse's heartbeat"), merged.index("    # keypulse's relay")
    assert merge(merged[:start] + merged[end:], DESTINATION) == merged


def test_an_inhibition_that_is_there_in_another_order_is_not_added_again() -> None:
    rule = (
        "  - {equal: [service, env], target_matchers: ['alertname=\"KMSDecryptionErrorsBurst\"'],"
        " source_matchers: ['alertname=\"KMSHighCryptoErrorRate\"']}\n"
    )
    assert len(yaml.safe_load(merge(file_with(inhibitions=rule), DESTINATION))["inhibit_rules"]) == 4


@pytest.mark.parametrize(
    ("route", "goes_on"),
    [
        ("{receiver: nobody}", False),
        ("{receiver: nobody, match: {alertname: Watchdog}}", True),
        ("{receiver: nobody, match: {severity: none}}", True),
        ("{receiver: nobody, matchers: ['severity=~\".+\"']}", False),
        ("{receiver: ops, matchers: ['team=a'], routes: [{receiver: nobody, matchers: [alertname=~Watch.*]}]}", True),
    ],
)
def test_the_heartbeat_goes_on_to_a_route_that_takes_it_by_name_and_to_no_other(route: str, goes_on: bool) -> None:
    merged = merge(file_with(route), DESTINATION)
    assert yaml.safe_load(merged)["route"]["routes"][0].get("continue", False) is goes_on
    assert merge(merged, DESTINATION) == merged


def test_a_route_of_keypulse_that_was_made_to_go_on_is_still_the_same() -> None:
    merged = merge(file_with("{receiver: nobody}"), DESTINATION)
    onward = merged.replace("      receiver: kms-security\n", "      receiver: kms-security\n      continue: true\n", 1)
    assert onward != merged
    assert merge(onward, DESTINATION) == onward


def test_the_relays_own_alerts_go_to_the_receiver_that_was_named() -> None:
    text = file_with("{receiver: nobody}").replace(
        "{name: nobody}", "{name: 'night, shift', webhook_configs: [{url: 'http://x'}]}"
    )
    text = text.replace("receiver: nobody", "receiver: ops")
    merged = yaml.safe_load(merge(text, Destination(DESTINATION.url, DESTINATION.token_file, "night, shift")))
    assert [route["receiver"] for route in merged["route"]["routes"]][:5] == [
        "watchdog",
        "kms-proof",
        "night, shift",
        "night, shift",
        "kms-security",
    ]


def test_a_second_merge_with_another_address_shows_both_values() -> None:
    merged = merge(file_with(), DESTINATION)
    other = Destination("https://relay.company.net/alerts", "/run/other_token")
    authorization = "http_config.authorization.credentials_file"
    assert collisions(merged, other) == [
        f'receiver {name} exists, and its webhook_configs differ: url is "{DESTINATION.url}", expected "{other.url}"; '
        f'{authorization} is "{DESTINATION.token_file}", expected "{other.token_file}"; correct either'
        for name in ("kms-critical", "kms-security", "kms-proof", "watchdog")
    ]


def test_of_an_address_that_is_no_relays_only_the_host_is_shown() -> None:
    webhook = (
        "{url: 'https://me:a-secret@ping.company.net/a-secret', http_config: {authorization: {credentials: a-secret}}}"
    )
    receivers = f"  - {{name: watchdog, webhook_configs: [{webhook}]}}\n"
    (line,) = collisions(file_with(receivers=receivers))
    assert 'url is "https://ping.company.net/…", expected' in line


def test_the_relays_own_alerts_reach_somebody_or_it_collides() -> None:
    names = ", ".join(each["name"] for each in yaml.safe_load(file_with())["receivers"])
    for direct, expected in (
        ("on-cal", f"there is no receiver on-cal, expected with --direct one of {names}"),
        (
            "nobody",
            "receiver nobody cannot report on the relay itself: name one that reaches people, with --direct",
        ),
    ):
        assert collisions(file_with(), Destination(DESTINATION.url, DESTINATION.token_file, direct)) == [expected]


def test_the_relay_cannot_report_on_itself_through_the_relay() -> None:
    merged = merge(file_with("{receiver: nobody}"), DESTINATION)
    start, end = merged.index("    # keypulse's relay"), merged.index("    # keypulse's alerts")
    destination = Destination(DESTINATION.url, DESTINATION.token_file, "kms-critical")
    (line,) = collisions(merged[:start] + merged[end:], destination)
    assert line.startswith("receiver kms-critical cannot report on the relay itself")


def test_another_receiver_than_the_one_that_is_named_collides() -> None:
    text = file_with().replace("{name: nobody}", "{name: night-shift, webhook_configs: [{url: 'http://x'}]}")
    merged = merge(text, DESTINATION)
    relay, unproven = collisions(merged, Destination(DESTINATION.url, DESTINATION.token_file, "night-shift"))
    assert "takes Relay" in relay
    assert "takes KMSPathUnproven" in unproven


def test_once_they_are_routed_nobody_is_asked_where_to() -> None:
    merged = merge(file_with(), Destination(DESTINATION.url, DESTINATION.token_file, "ops"))
    elsewhere = merged.replace("receiver: ops", "receiver: nobody", 1)
    assert merge(elsewhere, DESTINATION) == elsewhere


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "because of route, expected one that amtool accepts"),
        ("route: {receiver: a}\n", "because of receivers,"),
        ("route: {}\nreceivers: []\n", "because of route.receiver,"),
        ("route: {receiver: a, routes: [1]}\nreceivers: []\n", "because of route.routes.0,"),
        ("route: {receiver: a}\nreceivers: [{}]\n", "because of receivers.0.name,"),
        ("%YAML 1.3\n---\n" + FILE.replace("ROUTES", "[]"), "is YAML that Alertmanager does not take,"),
        ("kind: Secret\ndata: {}\n", "is a Kubernetes Secret, expected the alertmanager.yaml that it holds"),
    ],
)
def test_what_is_no_file_of_alertmanager_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        merge(text, DESTINATION)


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2\n", "- a\n", "a: {{ .Values.x }}\n"])
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the file: "):
        merge(text, DESTINATION)


@pytest.mark.parametrize(
    "text",
    [
        FILE.replace("ROUTES", "&r []") + "inhibit_rules: *r\n",
        FILE.replace("ROUTES", "") + "inhibit_rules: null\n",
        "base: &base {routes: [{receiver: nobody}]}\n" + FILE.replace("  routes: ROUTES", "  <<: *base"),
    ],
    ids=["an alias", "null", "a merge key"],
)
def test_what_cannot_be_edited_is_reported(text: str) -> None:
    assert re.search("write it out$|by hand$", collisions(text)[0])


def test_a_file_that_ends_within_a_text_block_says_what_to_do() -> None:
    text = file_with() + "templates:\n  - |\n    a.tmpl"
    assert collisions(text) == [
        "the file ends within a text block, to which a further line would belong; end it with a newline"
    ]
    merged = merge(f"{text}\n", DESTINATION)
    assert yaml.safe_load(merged)["templates"] == ["a.tmpl\n"]
    assert merge(merged.rstrip("\n"), DESTINATION) == merged.rstrip("\n")  # nothing is missing there
