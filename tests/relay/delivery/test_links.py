"""Links: templates, annotations, and what hostile labels cannot do to them."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.delivery.message import LinkRules, build_links, build_message, check_template
from services.relay.model import Alert, Status, encode_event
from services.relay.text import MAX_URL
from tests.relay.channels.examples import example, settings
from tests.relay.channels.examples import message as example_message
from tests.relay.channels.kinds import EVERY_KIND, unused_address
from tests.relay.delivery.sender_tasks import outgoing
from tests.relay.served_relay import at, event_of

RUNBOOK = "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md#{alertname_lower}"
DASHBOARD = "https://grafana.example.org/d/kms?var-env={env}&var-service={service}&from={from_ms}&to={to_ms}"
RULES = LinkRules(RUNBOOK, DASHBOARD, allow_hosts=frozenset())
PREFER_ANNOTATION = replace(RULES, prefers_annotation=True)
ACCEPTED = at(1_800_000_000)


def alert(labels: dict[str, str] | None = None, **annotations: str) -> Alert:
    usual = {"alertname": "KMSTest", "env": "prod", "service": "api"}
    return replace(
        event_of().alerts[0], labels=usual if labels is None else labels, annotations=annotations, starts_at=ACCEPTED
    )


@pytest.mark.parametrize(
    ("labels", "query"),
    [
        ({"alertname": "A", "env": "prod", "service": "api"}, "var-env=prod&var-service=api&from="),
        ({"alertname": "A", "env": "prod"}, "var-env=prod&from="),
        ({"alertname": "A", "env": "prod", "service": ""}, "var-env=prod&from="),
        ({"alertname": "A"}, "from="),
        ({"alertname": "A", "service": "api"}, "var-service=api&from="),
        ({"alertname": "A", "alertname_lower": "b", "to_ms": "0"}, "from="),  # no label replaces a computed value
    ],
)
def test_templates_are_filled_with_the_labels_that_an_alert_has_and_the_time_around_it(
    labels: dict[str, str], query: str
) -> None:
    found = build_links(alert(labels), ACCEPTED, RULES)
    assert found.runbook == "https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md#a"
    assert found.dashboard == f"https://grafana.example.org/d/kms?{query}1799998200000&to=1800001800000"
    resolved = replace(alert(labels), status=Status.RESOLVED, ends_at=ACCEPTED + timedelta(hours=1))
    assert (build_links(resolved, ACCEPTED, RULES).dashboard or "").endswith("&to=1800005400000")


def test_what_is_no_parameter_of_one_label_stays_as_the_template_has_it() -> None:
    rules = LinkRules("https://example.org/?all&q={a}-{b}&kept=1&gone={c}#at={d}", None, allow_hosts=frozenset())
    assert build_links(alert({"a": "x"}), ACCEPTED, rules).runbook == "https://example.org/?all&q=x-&kept=1#at="


@pytest.mark.parametrize(
    ("template", "labels"),
    [
        ("https://example.org/acme/{a}/{b}", {"a": "..", "b": "evil"}),
        ("https://example.org/acme/{a}/{b}", {"a": ".", "b": "x"}),
        ("https://example.org/acme/{a}{b}", {"a": ".", "b": "."}),
        ("https://example.org/acme/.{a}?q", {"a": "."}),
        ("https://example.org/acme/%2e{a}", {"a": "."}),
        ("https://example.org/acme/{a}", {"a": "../../evil"}),
        ("https://example.org/acme/{a}", {"a": "..\\evil"}),
    ],
)
def test_a_label_cannot_steer_a_link_to_another_folder(template: str, labels: dict[str, str]) -> None:
    rules = LinkRules(check_template(template), None, allow_hosts=frozenset())
    assert build_links(alert(labels), ACCEPTED, rules).runbook is None
    assert build_links(alert({"a": "x..", "b": "..y"}), ACCEPTED, rules).runbook is not None


def test_the_template_wins_over_an_annotation_unless_the_configuration_prefers_annotations() -> None:
    own = alert(runbook_url="http://wiki.example.org/x?a=b#c", dashboard_url="https://d.example.org:3000/ü")
    assert build_links(own, ACCEPTED, RULES) == build_links(alert(), ACCEPTED, RULES)
    found = build_links(own, ACCEPTED, PREFER_ANNOTATION)
    assert found.runbook == "http://wiki.example.org/x?a=b#c"
    assert found.dashboard == "https://d.example.org:3000/%C3%BC"
    assert build_links(own, ACCEPTED, LinkRules(None, None)) == found, "there is no template"


@pytest.mark.parametrize(
    ("labels", "link"),
    [
        ({"target": "ledger-kek", "service": "api"}, "https://board.example.org/kms/?q=ledger-kek"),
        ({"service": "a b&c=/#"}, "https://board.example.org/kms/?q=a%20b%26c%3D%2F%23"),
        ({"alertname": "KMSExporterAbsent"}, None),
        ({"target": "x" * 700}, None),
    ],
)
def test_an_alert_leads_to_its_key_or_its_service_on_the_board(labels: dict[str, str], link: str | None) -> None:
    rules = replace(RULES, board="https://board.example.org/kms")
    assert build_links(alert(labels), ACCEPTED, rules).board == link
    assert build_links(alert(labels), ACCEPTED, RULES).board is None


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "javascript://example.org/%0Aalert(1)",
        "ftp://example.org/x",
        "data:text/html,x",
        "//example.org/x",
        "/relative",
        "https:///no-host",
        "https://",
        "https://user:password@example.org/",
        "https://example.org\\@evil.example/",
        "https://evil.example\\.example.org/",
        "https://example.org/a\nHost: b",
        "https://example.org/a\x00",
        "java\tscript:alert(1)",
        " https://example.org/",
        "https://example.org/\u202egpj.exe",
        "https://ex\u0430mple.org/",
        "https://example.org:99999/",
        "https://[::1/",
        "https://example.org/" + "a" * MAX_URL,
        "https://example.org/\ud800",
    ],
)
def test_an_annotation_that_cannot_be_trusted_is_dropped_for_the_template(url: str) -> None:
    found = build_links(alert(runbook_url=url, dashboard_url=url), ACCEPTED, PREFER_ANNOTATION)
    assert found == build_links(alert(), ACCEPTED, RULES)
    bare = LinkRules(None, None, allow_hosts=frozenset())
    assert build_links(alert(runbook_url=url), ACCEPTED, bare).runbook is None


def test_allow_hosts_narrows_annotations_but_not_the_templates() -> None:
    rules = replace(PREFER_ANNOTATION, allow_hosts=frozenset({"wiki.example.org"}))
    for url in ("https://WIKI.example.org:8443/x", "https://wiki.example.org/x"):
        assert build_links(alert(runbook_url=url), ACCEPTED, rules).runbook == url
    for url in ("https://evil.example/wiki.example.org", "https://wiki.example.org.evil.example/"):
        assert (
            build_links(alert(runbook_url=url), ACCEPTED, rules).runbook
            == build_links(alert(), ACCEPTED, RULES).runbook
        )


@EVERY_KIND
@pytest.mark.parametrize("host", ["evil.example", "EVIL.example:8443", "allowed.example.evil.example"])
async def test_no_channel_links_to_another_host_than_those_that_are_allowed(
    kind: str, host: str, tmp_path: Path
) -> None:
    rules = LinkRules(None, None, allow_hosts=frozenset({"allowed.example"}))
    (secret := tmp_path / "secret").write_text("x" * 32)
    channel = settings(example(kind, secret, unused_address())).connect(5)
    for brings, expected in ((host, False), ("allowed.example:9090", True)):
        real = example_message("01-firing-1").event
        alerts = tuple(replace(each, generator_url=f"https://{brings}/graph") for each in real.alerts)
        brought = replace(real, alerts=alerts, external_url=f"https://{brings}/alertmanager")
        going_out = outgoing()._replace(event_json=encode_event(brought))
        payload = (
            channel.render_payload(await build_message(going_out, rules, {})).replace("=\n", "").replace("=\r\n", "")
        )
        assert host.lower() not in payload.lower()
        assert (brings in payload) is expected, "show the links of each of `view.parts`, and `view.group_links`"
        assert ("/graph" in payload) is expected
    await channel.close()


async def test_a_message_leads_to_the_page_of_its_episode_where_the_relays_address_is_known() -> None:
    task = outgoing()._replace(episode=3)
    found = await build_message(task, replace(RULES, public_url="https://relay.example.org"), {})
    assert found.incident_url == f"https://relay.example.org/incidents/{task.incident_id}?episode=3"
    assert (await build_message(task, RULES, {})).incident_url is None


def test_a_time_at_the_edge_of_the_calendar_costs_the_link_only() -> None:
    first = replace(alert(), starts_at=at(-62135596800))  # 0001-01-01
    assert build_links(first, ACCEPTED, RULES).dashboard is None


@given(st.dictionaries(st.sampled_from(["alertname", "env", "service", "x"]), st.text(max_size=40)))
def test_whatever_labels_say_a_template_gives_a_link_to_its_own_path(labels: dict[str, str]) -> None:
    found = build_links(alert(labels), ACCEPTED, RULES)
    for url, template in ((found.runbook, RUNBOOK), (found.dashboard, DASHBOARD)):
        assert url is not None
        actual, meant = urlsplit(url), urlsplit(template)
        assert url.isascii()
        assert url.isprintable()
        assert (actual.scheme, actual.netloc, actual.path) == (meant.scheme, meant.netloc, meant.path)
        assert bool(actual.query) == bool(meant.query)
        names = [name for name, _ in parse_qsl(actual.query, keep_blank_values=True)]
        missing = {f"var-{label}" for label in ("env", "service") if not labels.get(label)}
        assert names == [name for name, _ in parse_qsl(meant.query, keep_blank_values=True) if name not in missing]
    values = dict(parse_qsl(urlsplit(found.dashboard or "").query, keep_blank_values=True))
    assert values.get("var-env", "") == labels.get("env", "")


@given(st.text() | st.text().map("https://".__add__) | st.text().map("https://example.org/".__add__))
def test_whatever_an_annotation_says_it_gives_a_plain_http_link_or_none(url: str) -> None:
    found = build_links(alert(runbook_url=url), ACCEPTED, LinkRules(None, None, allow_hosts=frozenset())).runbook
    if found is not None:
        parts = urlsplit(found)
        assert parts.scheme in ("http", "https")
        assert parts.hostname
        assert parts.username is None
        assert found.isascii()
        assert found.isprintable()
        assert not set(found) & set(' "<>\\^`{|}')


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://example.org/{+path}", "not simple expansion, which escapes; write {path}"),
        ("https://example.org/{#part}", "not simple expansion"),
        ("https://example.org/{?q}", "not simple expansion"),
        ("https://example.org/{alert-name}", "is no variable"),
        ("https://example.org/{}", "is no variable"),
        ("https://example.org/{a,b}", "is no variable"),
        ("https://example.org/{a:3}", "is no variable"),
        ("https://example.org/#{alertnam}", r"\{alertnam\} is unknown; did you mean \{alertname\}\?"),
        ("https://example.org/#{alertname_lowr}", r"did you mean \{alertname_lower\}\?"),
        ("https://example.org/?s={Service}", r"did you mean \{service\}\?"),
        ("https://example.org/?from={from}&to={to}", r"\{from\} is unknown; did you mean \{from_ms\}\?"),
        ("https://example.org/{a", "expected each { to have its }"),
        ("https://example.org/a}", "expected each { to have its }"),
        ("https://{host}/", "expected http"),
        ("https://user@example.org/", "expected http"),
        ("ftp://example.org/", "expected http"),
        ("{url}", "expected http"),
        ("https://example.org/a b{x}", "gives no link"),
        ("https://example.org:99999/{x}", "gives no link"),
        ("https://-/", "gives no link"),
        ("https://[::1/", "gives no link"),
        ("https://example.org/../{x}", "gives no link"),
        ("https://example.org/" + "a" * MAX_URL, "gives no link"),
    ],
)
def test_a_template_that_could_give_anything_else_is_refused(template: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_template(template)


@pytest.mark.parametrize(
    ("address", "hosts", "expected"),
    [
        ("https://img.example.org/1.png", {"img.example.org"}, True),
        ("https://img.example.org/1.png", set(), False),  # a page loads it unasked
        ("https://evil.example/1.png", {"img.example.org"}, False),
        ("http://img.example.org/1.png", {"img.example.org"}, False),
    ],
)
def test_a_picture_comes_from_a_host_that_the_configuration_names(
    address: str, hosts: set[str], expected: bool
) -> None:
    (alert,) = example_message().event.alerts
    rules = LinkRules(None, None, allow_hosts=frozenset(hosts))
    links = build_links(replace(alert, annotations={"image_url": address}), example_message().task.accepted_at, rules)
    assert links.image == (address if expected else None)
