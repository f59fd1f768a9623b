"""The configuration of the contract, and one readable line for each mistake."""

from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from services.relay.config import RelaySettings
from shared.config.errors import ConfigurationError
from shared.config.settings import Address, load_settings
from shared.sql import database_url

CONTRACT = """
database: sqlite:////var/lib/keypulse/relay.db
auth: {bearer_token_file: /run/secrets/relay_token, admin_token_file: /run/secrets/relay_admin, allow_from: []}
alertmanager: {urls: [], token_file: null}
environment: staging   # the addresses are placeholders
links:
  runbook: https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md#{alertname_lower}
  dashboard: https://grafana.example.org/d/kms-crypto-health?var-env={env}&from={from_ms}&to={to_ms}
routes:
  - receiver: kms-critical
    channels: [slack-critical, email-secops, email-oncall, pagerduty]
  - receiver: kms-security
    matchers: ['severity="warning"']
    channels: [slack-security, email-secops]
default_channels: [slack-security]
delivery: {timeout: 10s, lease: 20s, backoff_initial: 1s, backoff_max: 5m, give_up_after: 24h, duplicate_window: 60s}
pacing: {enabled: true}
retention: {max_age: 30d, max_deliveries: 100000, max_bytes: 1GiB}
channels:
  slack-critical: {kind: slack, channel: "#security-critical", mention: channel, token_file: slack_token}
  slack-security: {kind: slack, channel: "#security-ops", token_file: slack_token}
  email-secops:   {kind: email, host: smtp.example.org, port: 587, from: "a <a@example.org>", to: [b@example.org]}
  email-oncall:   {kind: email, host: 127.0.0.1, port: 1025, tls: none, from: a@example.org, to: [b@example.org]}
  pagerduty:      {kind: pagerduty, routing_key_file: pd_key}
"""


TO_PAGER = {"after": "10m", "channels": ["pagerduty"]}
WATCHDOG = {"matchers": ['alertname="Watchdog"'], "expect_every": "2m", "channels": ["pagerduty"]}


def read(folder: Path, text: str) -> RelaySettings:
    file = folder / "relay.yml"
    file.write_text(text)
    return load_settings(RelaySettings, file)


def list_errors(folder: Path, **changes: Any) -> list[str]:
    document = yaml.safe_load(CONTRACT) | changes
    with pytest.raises(ConfigurationError) as raised:
        read(folder, yaml.safe_dump(document))
    assert all("\n" not in line for line in raised.value.lines)
    return [line.removeprefix(f"{folder / 'relay.yml'}: ") for line in raised.value.lines]


def test_a_size_that_is_none_is_an_error(tmp_path: Path) -> None:
    sizes: tuple[object, ...] = ("much", "-1MiB", [])
    for size in sizes:
        (line,) = list_errors(tmp_path, retention={"max_bytes": size})
        assert line.startswith("retention.max_bytes: expected a size such as 512KiB, 16MiB or 1GiB")
    assert read(tmp_path, CONTRACT).retention.max_bytes == 1024**3


def test_an_outbox_that_cannot_hold_one_webhook_is_an_error(tmp_path: Path) -> None:
    assert list_errors(tmp_path, retention={"max_bytes": "16MiB"}) == [
        "retention: max_bytes: expected at least 38452338 bytes, to hold a webhook of intake.max_body"
    ]
    document = yaml.safe_load(CONTRACT) | {"retention": {"max_bytes": "16MiB"}, "intake": {"max_body": "6MiB"}}
    assert read(tmp_path, yaml.safe_dump(document)).retention.max_bytes == 16 * 1024**2


def test_the_contracts_example_is_valid(tmp_path: Path) -> None:
    settings = read(tmp_path, CONTRACT)
    assert settings.listen == Address("127.0.0.1", 9912)
    assert settings.database == database_url.create_sqlite_url(Path("/var/lib/keypulse/relay.db"))
    assert settings.delivery.backoff_max == 300
    assert settings.routes[1].matchers[0].value == "warning"


def test_little_is_enough_and_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
        database: sqlite:///data/relay.db
        auth: {bearer_token_file: token}
        channels: {pd: {kind: pagerduty, routing_key_file: key}}
        default_channels: [pd]
        """,
    )
    assert settings.database == database_url.create_sqlite_url(tmp_path / "data/relay.db")
    assert settings.auth.bearer_token_file == tmp_path / "token"
    assert (settings.delivery.timeout, settings.delivery.lease, settings.delivery.give_up_after) == (10, 20, 86400)


def test_the_environment_sets_what_the_file_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYPULSE_RELAY__DATABASE", f"sqlite:///{tmp_path}/other.db")
    monkeypatch.setenv("KEYPULSE_RELAY__DELIVERY__GIVE_UP_AFTER", "1h")
    settings = read(tmp_path, CONTRACT)
    assert settings.database == database_url.create_sqlite_url(tmp_path / "other.db")
    assert settings.delivery.give_up_after == 3600


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"database": "postgresql://relay:secret@db"}, "database: expected sqlite:///FILE"),
        ({"database": "sqlite:////tmp/x?mode=ro"}, "database: expected sqlite:///FILE"),
        (
            {"watchdogs": [{"matchers": ["a=b"], "expect_every": "2m", "channels": ["x"]}]},
            "watchdogs.0: channels: x: no",
        ),
        ({"watchdogs": [{"matchers": [], "expect_every": "2m", "channels": ["pagerduty"]}]}, "watchdogs.0.matchers: "),
        ({"watchdogs": 2 * [WATCHDOG]}, "watchdogs: two watchdogs are called Watchdog"),
        ({"alertmanager": {"urls": ["localhost:9093"]}}, "alertmanager.urls.0: expected a URL such as"),
        (
            {"alertmanager": {"urls": ["http://alertmanager:9093"], "token_file": "t"}},
            "alertmanager: expected https://",
        ),
        ({"retention": {"max_deliveries": 0}}, "retention.max_deliveries: expected at least 1, got 0"),
        (
            {"channels": {"pagerduty": {"kind": "pagerduty", "routing_key_file": "k", "rate": "2"}}},
            "channels.pagerduty.rate: expected messages in a time, such as 1/s, 120/m or 500/h",
        ),
        ({"database": None}, "database: expected sqlite:///FILE"),
        ({"database": "postgresql://db/relay?password=x"}, "database: password would stand there for everybody"),
        ({"database": "sqlite:///a\0b"}, "database: expected a path; a NUL character can stand in none"),
        ({"auth": {}}, "auth.bearer_token_file: missing"),
        ({"auth": {"bearer_token_file": "t", "allow_from": ["10.0.0.1/8"]}}, "auth.allow_from.0"),
        (
            {"routes": [{"channels": ["nowhere"]}]},
            "routes.0: channels: nowhere: no such channel; expected one of email",
        ),
        ({"routes": [{"channels": []}]}, "routes.0.channels: expected at least one"),
        (
            {"routes": [{"channels": ["pagerduty"], "escalate": [{"after": "1m", "channels": ["nowhere"]}]}]},
            "routes.0: escalate.0.channels: nowhere: no such channel; expected one of email",
        ),
        (
            {"routes": [{"channels": ["pagerduty"], "escalate": [{"after": "1m", "channels": ["pagerduty"]}]}]},
            "routes.0: escalate.0.channels: pagerduty has the incident by then; expected another channel",
        ),
        (
            {"routes": [{"channels": ["email-oncall"], "escalate": [TO_PAGER, TO_PAGER]}]},
            "routes.0: escalate.1.after: expected longer than the step before it",
        ),
        (
            {"routes": [{"channels": ["email-oncall"], "escalate": [TO_PAGER, {**TO_PAGER, "after": "1h"}]}]},
            "routes.0: escalate.1.channels: pagerduty has the incident by then",
        ),
        (
            {"routes": [{"channels": ["pagerduty"], "matchers": ["a"]}]},
            "routes.0.matchers.0: expected a matcher such as",
        ),
        ({"routes": [{"channels": ["pagerduty"], "matchers": ['a=~"("']}]}, "routes.0.matchers.0: is not a regular"),
        ({"default_channels": ["nowhere"]}, "default_channels.0: no such channel; expected one of email-oncall"),
        ({"default_channels": []}, "default_channels: "),
        ({"links": {"runbook": "https://example.org/{+x}"}}, "links.runbook: {+x} is not simple expansion"),
        ({"links": {"dashboard": "https://example.org/{a-b}"}}, "links.dashboard: {a-b} is no variable"),
        ({"delivery": {"lease": "10s"}}, "delivery: lease (10s) must be at least 1s longer than timeout (10s)"),
        ({"delivery": {"backoff_max": "1ms"}}, "delivery: backoff_max must not be shorter than backoff_initial"),
        ({"channels": {}, "default_channels": ["x"]}, "channels: "),
        ({"contacts": {"owner": 49301234567}}, "contacts.owner: expected text in quotes, since YAML takes a telephone"),
        ({"contacts": {"owner": ["a"]}}, "contacts.owner: expected text"),
        ({"contacts": {"owner": "x" * 201}}, "contacts.owner: expected text of at most 200 characters"),
        ({"contacts": {"": "a"}}, "contacts..[key]: expected text that is longer"),
        ({"contacts": {str(n): "a" for n in range(11)}}, "contacts: expected at most 10 entries"),
        ({"environment": "prod"}, "environment: expected 'production', 'staging' or 'demo', got 'prod'"),
    ],
)
def test_an_error_is_one_line_with_its_key_and_what_was_expected(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    lines = list_errors(tmp_path, **changes)
    assert any(line.startswith(expected) for line in lines), lines


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "slack", "channel": "ops"}, 'channel: expected "#name", in quotes, since YAML takes # for a comment'),
        ({"kind": "slack", "mention": "all"}, "mention: expected 'channel', 'here' or 'none', got 'all'"),
        ({"kind": "email", "host": "a b"}, "host: expected the name or the address of a mail server"),
        ({"kind": "email", "port": 70000}, "port: expected at most 65535, got 70000"),
        ({"kind": "email", "to": []}, "to: expected a list of at least 1"),
        ({"kind": "pagerduty", "routing_key_file": 7}, "routing_key_file: expected a path, got 7"),
        ({"kind": "webhook", "url": "hooks.example.org/T0/geheim"}, "url: expected a URL such as https://HOST/PATH"),
    ],
)
def test_an_error_in_a_channel_is_reported_as_the_documentation_describes_it(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    lines = list_errors(tmp_path, channels={"one": changes}, default_channels=["one"], routes=[])
    assert any(line.startswith(f"channels.one.{expected}") for line in lines), lines
    assert not any("geheim" in line or "nput should" in line for line in lines)


def test_a_channel_that_a_comment_cut_off_is_named(tmp_path: Path) -> None:
    file = tmp_path / "relay.yml"
    file.write_text(
        "auth: {bearer_token_file: t}\ndefault_channels: [slack]\n"
        "channels:\n  slack:\n    kind: slack\n    channel: #security-ops\n    token_file: x\n"
    )
    with pytest.raises(ConfigurationError) as raised:
        load_settings(RelaySettings, file)
    expected = "YAML takes # and what follows it for a comment; expected the value in quotes"
    assert raised.value.lines == [f"{file}: channels.slack.channel: {expected}"]


def test_several_errors_are_named_at_once(tmp_path: Path) -> None:
    routes = [{"channels": ["nowhere"]}, {"channels": ["pagerduty"], "matchers": ["a", "b"]}]
    lines = list_errors(tmp_path, routes=routes, default_channels=["x", "y"], database="x")
    assert len(lines) == 6


def test_the_password_of_a_database_is_shown_nowhere(tmp_path: Path) -> None:
    settings = read(
        tmp_path, CONTRACT.replace("sqlite:////var/lib/keypulse/relay.db", "postgresql://a:geheim@db/relay")
    )
    assert settings.database.password == "geheim"
    assert "geheim" not in f"{settings!r} {settings.database} {settings.model_dump_json(include={'database'})}"


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://db/relay?password=geheim",
        "postgresql://a:geheim@db:port/relay",
        "postgresql:/db/relay?password=geheim",
        "host=db password=geheim",
        '"postgresql://a:geheim@db/relay',
        "postgresql://a:geheim@db/relay: 1",
    ],
)
def test_an_error_in_the_address_of_a_database_does_not_show_its_password(tmp_path: Path, database: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, CONTRACT.replace("sqlite:////var/lib/keypulse/relay.db", database))
    (line,) = raised.value.lines
    assert "geheim" not in line
    assert "\n" not in line


def test_the_files_of_a_database_start_at_the_files_folder(tmp_path: Path) -> None:
    url = "postgresql://db/relay?passfile=secrets/pgpass&sslcert=/etc/relay.crt&sslrootcert=system"
    settings = read(tmp_path, CONTRACT.replace("sqlite:////var/lib/keypulse/relay.db", url))
    files = {"passfile": f"{tmp_path}/secrets/pgpass", "sslcert": "/etc/relay.crt", "sslrootcert": "system"}
    assert settings.database.query == files


@pytest.mark.parametrize(
    ("matchers", "name"),
    [
        (['alertname="Watchdog"'], "Watchdog"),
        (['alertname="Watchdog"', "cluster=eu"], "Watchdog{cluster=eu}"),
        (["cluster=~eu|us", "alertname=Watchdog", "env!=test"], "Watchdog{cluster=~eu|us,env!=test}"),
        (['alertname=~"Watch.*"'], "alertname=~Watch.*"),
        (["cluster=eu", "severity=none"], "cluster=eu,severity=none"),
    ],
)
def test_a_watchdog_is_called_after_its_matchers(tmp_path: Path, matchers: list[str], name: str) -> None:
    document = yaml.safe_load(CONTRACT) | {"watchdogs": [WATCHDOG | {"matchers": matchers}]}
    assert [each.name for each in read(tmp_path, yaml.safe_dump(document)).watchdogs] == [name]


def test_a_comment_in_a_section_is_not_named_for_another_error_of_that_section(tmp_path: Path) -> None:
    mail = (
        "kind: email\n    host: smtp.ledger.test\n    port: 25 #smtp\n    tls: none\n    from: a@b.c\n    to: [d@e.f]"
    )
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, f"auth: {{bearer_token_file: t}}\ndefault_channels: [one]\nchannels:\n  one:\n    {mail}\n")
    (line,) = refused.value.lines
    assert "channels.one: `tls: none` would send alerts in plaintext" in line


@pytest.mark.parametrize(
    "host", ["https://grafana.ledger.test", "grafana.ledger.test:3000", "*.ledger.test", "", "[::1]"]
)
def test_an_allowed_host_that_no_link_could_have_is_an_error(tmp_path: Path, host: str) -> None:
    (line,) = list_errors(tmp_path, links={"allow_hosts": [host]})
    assert line.startswith("links.allow_hosts.0: expected the name of a host, without https://, a port, a path or *")


def test_a_recipient_that_is_no_address_is_one_error(tmp_path: Path) -> None:
    mail = {"kind": "email", "host": "localhost", "from": "a@ledger.test", "to": ["b at ledger.test"]}
    (line,) = list_errors(tmp_path, channels={"one": mail}, default_channels=["one"], routes=[])
    assert line.startswith("channels.one.to.0: expected one address")


def test_escalation_that_only_writes_to_the_log_is_a_warning(tmp_path: Path) -> None:
    routes = [{"channels": ["one"], "escalate": [{"after": "1m", "channels": ["log"]}, TO_PAGER]}]
    channels = {
        "one": {"kind": "log"},
        "log": {"kind": "log"},
        "pagerduty": {"kind": "pagerduty", "routing_key_file": "k"},
    }
    changes = {"environment": "staging", "channels": channels, "default_channels": ["one"], "routes": routes}
    configured = read(tmp_path, yaml.safe_dump(yaml.safe_load(CONTRACT) | changes))
    assert list(configured.find_warnings()) == [("routes.0.escalate.0", "reaches nobody: it writes to the log alone")]
    assert configured.acknowledging_channels == {"pagerduty"}


def test_a_label_that_keypulses_alerts_lack_is_a_warning_in_a_link(tmp_path: Path) -> None:
    links = {
        "runbook": "https://wiki.company.net/{tenant}#{alertname_lower}",
        "dashboard": "https://g.company.net/{cluster}",
    }
    configured = read(tmp_path, yaml.safe_dump(yaml.safe_load(CONTRACT) | {"links": links}))
    assert [warning for warning in configured.find_warnings() if warning[0].startswith("links")] == [
        ("links.runbook", "{tenant} is no label of keypulse's alerts; one without it has nothing there")
    ]


@pytest.mark.parametrize("name", ["Europe/Nowhere", "Europe", "../../etc/passwd", "", "CEST", "europe berlin"])
def test_a_time_zone_that_nobody_has_is_an_error(tmp_path: Path, name: str) -> None:
    (error,) = list_errors(tmp_path, messages={"timezone": name})
    assert error.startswith("messages.timezone: expected the IANA name of a time zone, such as UTC or Europe/Berlin")


def test_a_time_zone_is_utc_unless_one_is_named(tmp_path: Path) -> None:
    assert read(tmp_path, CONTRACT).messages.zone is UTC
    named = yaml.safe_dump(yaml.safe_load(CONTRACT) | {"messages": {"timezone": "Asia/Kathmandu"}})
    assert read(tmp_path, named).messages.zone == ZoneInfo("Asia/Kathmandu")
