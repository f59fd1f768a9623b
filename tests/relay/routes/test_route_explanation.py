"""What is said of a route is what the intake does."""

import json

from hypothesis import given
from hypothesis import strategies as st

from services.relay.config import RelaySettings
from services.relay.intake.routing import RouteSettings, WatchdogSettings
from services.relay.intake.webhook import parse_webhook
from services.relay.model import EscalationStep
from services.relay.routes.alertmanager import RouteState
from services.relay.routes.explanation import explain_route
from tests.relay.monitors.monitored_outbox import watch
from tests.relay.served_relay import webhook_of

STEPS = (EscalationStep(600.0, ("boss",)),)
ROUTES = (
    RouteSettings(
        receiver="kms-critical", channels=("slack", "pager"), escalate=({"after": "10m", "channels": ("boss",)},)
    ),
    RouteSettings(matchers=('severity="warning"', 'env!~"test|dev"'), channels=("mail",)),
)
SETTINGS = RelaySettings.model_construct(
    channels={}, routes=ROUTES, default_channels=("log", "log"), watchdogs=(watch("Watchdog", "60s", "slack"),)
)


def test_each_route_says_what_failed_or_matched() -> None:
    found = explain_route("kms-critical", {"alertname": "A"}, SETTINGS)
    assert (found.route, found.channels, found.escalation) == (0, ("slack", "pager"), STEPS)
    assert found.why == ("routes.0 matches: receiver kms-critical",)
    assert [each.state for each in found.verdicts] == [RouteState.CHOSEN, RouteState.SKIPPED]

    found = explain_route("other", {"severity": "warning"}, SETTINGS)
    assert (found.route, found.channels) == (1, ("mail",))
    assert found.why == (
        "routes.0 does not match: its receiver is kms-critical",
        'routes.1 matches: severity="warning", env!~"test|dev"',
    )

    found = explain_route("other", {"env": "dev", "severity": 'a"' + "x" * 200}, SETTINGS)
    assert (found.route, found.channels) == (None, ("log",))
    reasons = (
        f'routes.1 does not match: severity="warning" fails, severity is "a\\"{"x" * 97}…", '
        'env!~"test|dev" fails, env is "dev"'
    )
    assert found.why[1:] == (reasons, "no route matches, so it goes to default_channels")
    found = explain_route("other", {}, SETTINGS)
    assert 'severity="warning" fails, there is no label severity' in found.why[1]

    found = explain_route("kms-critical", {"alertname": "Watchdog"}, SETTINGS)
    assert (found.route, found.channels, found.watchdogs) == (None, (), ("Watchdog",))
    assert found.why == ("it is a heartbeat of the watchdog Watchdog; no channel gets it",)


values = st.sampled_from(["", "a", "b", "ab"])
matchers = st.builds(
    lambda label, operator, value: f'{label}{operator}"{value}"',
    st.sampled_from(["x", "y"]),
    st.sampled_from(["=", "!=", "=~", "!~"]),
    values,
)
receivers = st.sampled_from(["one", "two"])
routes = st.builds(
    RouteSettings,
    receiver=st.none() | receivers,
    matchers=st.lists(matchers, max_size=2).map(tuple),
    channels=st.sampled_from([("slack",), ("mail", "pager")]),
)
heartbeats = st.builds(
    WatchdogSettings,
    matchers=st.lists(matchers, min_size=1, max_size=1).map(tuple),
    expect_every=st.just("60s"),
    channels=st.just(("slack",)),
)


@given(
    receivers,
    st.dictionaries(st.sampled_from(["x", "y"]), values),
    st.lists(routes, max_size=5),
    st.lists(heartbeats, max_size=1),
)
def test_an_explanation_is_what_the_intake_does(
    receiver: str, labels: dict[str, str], listed: list[RouteSettings], watchdogs: list[WatchdogSettings]
) -> None:
    webhook = json.loads(webhook_of(receiver=receiver))
    webhook["alerts"][0]["labels"] = labels
    parsed = parse_webhook(json.dumps(webhook).encode(), "", watchdogs, listed)

    settings = RelaySettings.model_construct(
        channels={}, routes=tuple(listed), default_channels=("log",), watchdogs=tuple(watchdogs)
    )
    found = explain_route(receiver, labels, settings)

    assert set(found.watchdogs) == parsed.heartbeats
    assert (None if found.route is None else listed[found.route]) is parsed.route
    if parsed.incoming is not None:
        assert found.channels == (parsed.route.channels if parsed.route else ("log",))
    chosen = [number for number, each in enumerate(found.verdicts) if each.state is RouteState.CHOSEN]
    assert chosen == ([] if found.route is None else [found.route])
