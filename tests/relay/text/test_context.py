from dataclasses import replace
from datetime import timedelta

import pytest

from services.relay.model import MAX_EPISODES, IncidentContext, RelatedIncident, Status
from services.relay.text import ALSO_FIRING, HOW_OFTEN, LAST_MESSAGE, list_context
from tests.relay.channels.examples import change, message

NOW = message().task.accepted_at


def facts(payload: str = "07-firing-3", **context: object) -> dict[str, tuple[str, ...]]:
    of = change(message(payload), context=IncidentContext(**context))  # type: ignore[arg-type]  # any of its fields
    return {line.name: line.items for line in list_context(of)}


def test_it_says_what_changed_since_the_last_message_and_how_long_that_is() -> None:
    resolved, one, two = message("07-firing-3").event.alerts
    before = {resolved.fingerprint: Status.FIRING, one.fingerprint: Status.FIRING}
    found = facts(previous_at=NOW - timedelta(hours=2, minutes=3), previous_alerts=before)
    changes = "since then 1 new (backend-2:8000), 1 resolved (backend-0:8000)"
    assert found == {LAST_MESSAGE: (f"2 h 3 min ago; {changes}",)}
    assert two.labels["instance"] == "backend-2:8000"


def test_it_says_that_nothing_changed_and_nothing_where_it_cannot_compare() -> None:
    statuses = {alert.fingerprint: alert.status for alert in message("07-firing-3").event.alerts}
    ago = NOW - timedelta(minutes=30)
    assert facts(previous_at=ago, previous_alerts=statuses) == {LAST_MESSAGE: ("30 min ago; nothing has changed",)}
    assert facts(previous_at=ago) == {LAST_MESSAGE: ("30 min ago",)}


def test_many_changes_name_three() -> None:
    of = message("05-firing-3")
    alert = of.event.alerts[0]
    alerts = tuple(replace(alert, fingerprint=str(n), labels={**alert.labels, "instance": f"b-{n}"}) for n in range(9))
    context = IncidentContext(previous_at=NOW, previous_alerts={"x": Status.FIRING})
    long = change(replace(of, event=replace(of.event, alerts=alerts)), context=context)
    assert list_context(long)[0].items == ("0 s ago; since then 9 new (b-0; b-1; b-2; …)",)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1st time in 7 days"),
        (2, "2nd time in 7 days"),
        (11, "11th time in 7 days"),
        (23, "23rd time in 7 days"),
        (MAX_EPISODES, "100 times or more in 7 days"),
    ],
)
def test_it_says_how_often(number: int, text: str) -> None:
    assert facts(episodes_in_7_days=number) == {HOW_OFTEN: (text,)}


def test_what_else_fires_is_clean_short_and_counted() -> None:
    related = tuple(RelatedIncident(str(n), f"{n}\u202e\nx" + "w" * 900, NOW) for n in range(7))
    (*names, more) = facts(related=related, related_count=40)[ALSO_FIRING]
    assert len(names) == 5
    assert more == "… and 35 more"
    assert all(len(item) < 240 and "\n" not in item and "\u202e" not in item for item in names)
    assert names[0].endswith(", since 2026-11-24 22:46 UTC")
