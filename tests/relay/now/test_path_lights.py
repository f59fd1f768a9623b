"""What the lights of the first page say: a part that works has a proof, and what is not known is not green."""

from dataclasses import replace

import pytest

from services.relay.apis import RuleGroup
from services.relay.console.frame import HealthStatus, find_worst
from services.relay.intake.routing import WatchdogSettings
from services.relay.now.lights import (
    Light,
    PrometheusFacts,
    Scrape,
    SenderFacts,
    build_heartbeat_lights,
    build_intake_light,
    build_prometheus_lights,
    build_proof_light,
    build_sender_light,
    build_store_light,
)
from services.relay.now.overview import EMPTY_OVERVIEW, WebhookTimes
from services.relay.outbox.proofs import ChannelProofRow, ChannelTimes
from services.relay.proofs.queries import Standing

NOW = 1_000_000.0
FAILING, DEGRADED, UNKNOWN, HEALTHY = HealthStatus


def group(name: str = "kms_keys", age: float | None = 5.0, failing: str | None = None) -> RuleGroup:
    return RuleGroup(name, 15.0, None if age is None else NOW - age, 3, failing, "no such metric" if failing else "")


def read_light(light: Light) -> tuple[HealthStatus, str, bool]:
    """Its state and sentence, and whether it says what to do."""
    return light.verdict.status, light.verdict.text, bool(light.verdict.hint)


@pytest.mark.parametrize(
    ("facts", "is_configured", "expected", "at"),
    [
        (None, False, (UNKNOWN, "Not known without messages.prometheus_url.", True), None),
        (None, True, (UNKNOWN, "Prometheus is being asked.", False), None),
        (PrometheusFacts("HTTP 502"), True, (UNKNOWN, "Not known: no answer of Prometheus: HTTP 502.", True), None),
        (PrometheusFacts(), True, (UNKNOWN, "Prometheus has no target of the job keypulse-exporter.", True), None),
        (PrometheusFacts("", [Scrape("a:1", 5.0)]), True, (HEALTHY, "Scraped.", False), 5.0),
        (
            PrometheusFacts("", [Scrape("a:1", 5.0), Scrape("b:1", None)]),
            True,
            (DEGRADED, "1 of 2 cannot be scraped: b:1.", True),
            5.0,
        ),
        (PrometheusFacts("", [Scrape("b:1", None)]), True, (FAILING, "1 of 1 cannot be scraped: b:1.", True), None),
    ],
)
def test_the_light_of_the_exporter_fits_its_facts(
    facts: PrometheusFacts | None, is_configured: bool, expected: tuple[object, ...], at: float | None
) -> None:
    light, _ = build_prometheus_lights(facts, NOW, is_configured=is_configured)
    assert (read_light(light), light.at) == (expected, at)


@pytest.mark.parametrize(
    ("groups", "expected", "age"),
    [
        ([], (FAILING, "Prometheus has no alerting rule.", True), None),
        ([group(), group("kms_crypto", 9.0)], (HEALTHY, "6 rules evaluated.", False), 9.0),
        ([group(), group("another_team", 900.0, "Odd")], (HEALTHY, "3 rules evaluated.", False), 5.0),
        ([group("another_team")], (HEALTHY, "3 rules evaluated.", False), 5.0),
        ([group(failing="Slow")], (DEGRADED, "Slow cannot be evaluated: no such metric", True), 5.0),
        ([group(age=90.0)], (FAILING, "Not evaluated in time: kms_keys.", True), 90.0),
        ([group(age=None)], (FAILING, "Not evaluated in time: kms_keys.", True), None),
    ],
)
def test_the_light_of_the_rules_fits_its_facts(
    groups: list[RuleGroup], expected: tuple[object, ...], age: float | None
) -> None:
    _, light = build_prometheus_lights(PrometheusFacts(groups=groups), NOW, is_configured=True)
    assert (read_light(light), light.at and NOW - light.at) == (expected, age)


@pytest.mark.parametrize(
    ("at", "awaited_since", "expected"),
    [
        (10.0, 10.0, (HEALTHY, "Heartbeats come; one is expected every 5 min.", False)),
        (301.0, 301.0, (FAILING, "No heartbeat comes; one is expected every 5 min.", True)),
        (None, 60.0, (UNKNOWN, "No heartbeat has come yet; one is expected every 5 min.", False)),
        (None, 301.0, (FAILING, "No heartbeat comes; one is expected every 5 min.", True)),
        (None, None, (UNKNOWN, "No heartbeat has come yet; one is expected every 5 min.", False)),
    ],
)
def test_the_light_of_the_heartbeats_fits_its_facts(
    at: float | None, awaited_since: float | None, expected: tuple[object, ...]
) -> None:
    ages = [None if age is None else NOW - age for age in (at, awaited_since)]
    watchdog = WatchdogSettings(matchers=('alertname="prod"',), expect_every="5m", channels=("a",))
    overview = replace(EMPTY_OVERVIEW, heartbeats={"prod": ages[0]})
    if ages[1] is not None:
        overview = replace(overview, heartbeats_awaited={"prod": ages[1]})
    (light,) = build_heartbeat_lights([watchdog], overview, NOW, is_readable=True)
    assert (light.name, read_light(light), light.at) == ("Alertmanager", expected, ages[0])
    names = [light.name for light in build_heartbeat_lights([watchdog] * 2, overview, NOW, is_readable=True)]
    assert names == ["Alertmanager (prod)"] * 2
    (unreadable,) = build_heartbeat_lights([watchdog], overview, NOW, is_readable=False)
    assert read_light(unreadable) == (UNKNOWN, "Not known: the store cannot be read.", False)
    (nothing,) = build_heartbeat_lights([], overview, NOW, is_readable=True)
    assert read_light(nothing) == (UNKNOWN, "Not known without watchdogs.", True)


@pytest.mark.parametrize(
    ("token_error", "accepted", "entries", "answers", "expected"),
    [
        (None, None, 0, {}, (UNKNOWN, "No webhook has come yet.", True)),
        (None, 5.0, 2, {202: 5.0}, (HEALTHY, "Webhooks are accepted. 2 in quarantine.", False)),
        ("it is empty", 5.0, 0, {}, (FAILING, "it is empty", True)),
        (None, 500.0, 0, {401: 60.0}, (DEGRADED, "One was refused 1 min ago (401): wrong or no credentials.", True)),
        (None, 500.0, 0, {401: 901.0}, (HEALTHY, "Webhooks are accepted.", False)),
        (
            None,
            500.0,
            0,
            {503: 60.0, 400: 90.0},
            (
                FAILING,
                "One was refused 1 min ago (503): it could not be committed; Alertmanager sends it again.",
                False,
            ),
        ),
        (
            None,
            5.0,
            0,
            {503: 60.0},
            (
                DEGRADED,
                "One was refused 1 min ago (503): it could not be committed; Alertmanager sends it again.",
                False,
            ),
        ),
    ],
)
def test_the_light_of_the_intake_fits_its_facts(
    token_error: str | None,
    accepted: float | None,
    entries: int,
    answers: dict[int, float],
    expected: tuple[object, ...],
) -> None:
    times = WebhookTimes(None if accepted is None else NOW - accepted, entries)
    answered_at = {code: NOW - age for code, age in answers.items()}
    light = build_intake_light(times, answered_at, NOW, token_error=token_error, can_commit=True)
    assert read_light(light) == expected
    assert light.href == ("/quarantine" if entries else "")
    stuck = build_intake_light(times, answered_at, NOW, token_error=None, can_commit=False)
    assert read_light(stuck) == (FAILING, "Webhooks are answered 503, and Alertmanager sends them again.", True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ((None, NOW - 3, 5 << 20, 100 << 20), (HEALTHY, "Commits; holds 5 MiB of 100 MiB.", False)),
        ((None, NOW - 3, 5 << 20, 0), (HEALTHY, "Commits; holds 5 MiB.", False)),
        (("disk full", NOW - 3, 0, 0), (FAILING, "Cannot be used: disk full.", True)),
        ((None, NOW - 3, 95 << 20, 100 << 20), (DEGRADED, "Nearly full: 95 MiB of 100 MiB.", True)),
        ((None, None, 0, 0), (UNKNOWN, "Nothing was committed for a while.", True)),
        ((None, NOW - 61, 0, 0), (UNKNOWN, "Nothing was committed for a while.", True)),
    ],
)
def test_the_light_of_the_store_fits_its_facts(
    facts: tuple[str | None, float | None, int, int], expected: tuple[object, ...]
) -> None:
    assert read_light(build_store_light(*facts, NOW)) == expected


def test_the_light_of_the_sender_fits_its_facts_and_the_worst_light_is_found() -> None:
    assert read_light(build_sender_light(None)) == (UNKNOWN, "Its process is being asked.", False)
    assert read_light(build_sender_light(SenderFacts(answers=True, answered_at=NOW)))[0] is HEALTHY
    failing = build_sender_light(SenderFacts(answers=False, answered_at=NOW - 30))
    assert (read_light(failing)[0], failing.at) == (FAILING, NOW - 30)
    assert find_worst([HEALTHY, UNKNOWN, DEGRADED]) is DEGRADED
    assert find_worst([]) is UNKNOWN


def standing(
    channel: str, age: float | None, hop: str | None = None, error: str | None = None, *, served: float = 86400.0
) -> Standing:
    """Proven so long ago, or never; served for so many seconds."""
    times = ChannelTimes({} if age is None else {"reachable": NOW - age}, NOW - served)
    return Standing(channel, times, ChannelProofRow(NOW - 900, channel, 1, None, hop, error, NOW))


@pytest.mark.parametrize(
    ("standings", "expected", "age"),
    [
        (
            [standing("a", None, served=60)],
            (UNKNOWN, "No proof has come yet; one is expected every 15 min.", False),
            None,
        ),
        ([standing("a", 60), standing("b", 1800)], (HEALTHY, "2 of 2 channels are proven.", False), 1800),
        (
            [standing("a", 60), standing("b", None, served=60)],
            (HEALTHY, "1 of 2 channels are proven. Not yet: b.", False),
            60,
        ),
        (
            [standing("a", 60), standing("b", 60, error="missing_scope")],
            (DEGRADED, "Proven, and the last proof has an error: b.", True),
            60,
        ),
        (
            [standing("a", 60), standing("b", 1801, "channel", "HTTP 401"), standing("c", None, "outbox")],
            (DEGRADED, "Not proven for two intervals: b (lost at channel), c (lost at outbox).", True),
            1801,
        ),
        (
            [standing("a", None, "unknown")],
            (FAILING, "Not proven for two intervals: a (lost before the relay).", True),
            None,
        ),
        # Served again just now, after a day.
        (
            [standing("a", 86400, served=60)],
            (UNKNOWN, "No proof has come yet; one is expected every 15 min.", False),
            86400,
        ),
    ],
)
def test_the_light_of_the_proof_names_the_channels_that_are_not_proven_and_the_hop(
    standings: list[Standing], expected: tuple[object, ...], age: float | None
) -> None:
    light = build_proof_light(standings, NOW, 900.0, is_readable=True)
    assert (read_light(light), light.at and NOW - light.at) == (expected, age)
    unreadable = build_proof_light(standings, NOW, 900.0, is_readable=False)
    assert read_light(unreadable) == (UNKNOWN, "Not known: the store cannot be read.", False)
