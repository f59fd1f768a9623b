from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings

from services.relay.model import MAX_EPISODES, Alert, IncidentContext, Message, RelatedIncident, Status
from services.relay.text import LAST_MESSAGE, AlertTable
from services.relay.text.body import ALSO_FIRING, HOW_OFTEN, arrange_alerts, list_alerts, list_context
from tests.iterations import LONG
from tests.relay.channels.examples import change, message, messages

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


def group(firing: int, resolved: int, **annotations: str) -> Message:
    """Alerts of one rule that differ in their instance; `{n}` in an annotation is its number."""
    of = message("05-firing-3")
    first = of.event.alerts[0]

    def build(n: int) -> Alert:
        texts = {name: text.replace("{n}", str(n)) for name, text in annotations.items()}
        alert = replace(
            first, fingerprint=str(n), annotations=texts, labels={**first.labels, "instance": f"backend-{n}:8000"}
        )
        end = alert.starts_at + timedelta(minutes=30)
        return alert if n < firing else replace(alert, status=Status.RESOLVED, ends_at=end)

    alerts = tuple(map(build, range(firing + resolved)))
    return replace(of, event=replace(of.event, alerts=alerts), links=of.links[:1] * len(alerts))


def arrange_one(of: Message, max_rows: int = 25) -> AlertTable:
    (table,), more = arrange_alerts(of, list_alerts(of), max_cards=25, max_tables=5, max_rows=max_rows)
    assert isinstance(table, AlertTable)
    assert more == ""
    return table


def test_what_all_alerts_share_is_in_the_caption() -> None:
    table = arrange_one(group(4, 0, summary="Errors on backend-{n}:8000 rise"))
    assert table.caption == "Errors on … rise · firing since 2026-11-24 22:46 UTC"
    assert table.columns == ("instance",)


def test_a_summary_that_says_more_than_the_labels_has_a_column() -> None:
    table = arrange_one(group(4, 0, summary="{n} errors a second"))
    assert table.columns == ("instance", "summary")
    assert table.rows[2] == ("backend-2:8000", "2 errors a second")
    assert table.caption == "KMSHighCryptoErrorRate · firing since 2026-11-24 22:46 UTC"


def test_no_number_of_firing_alerts_hides_the_resolved_ones() -> None:
    table = arrange_one(group(90, 30, summary="x"), max_rows=20)
    states = [alert.status for alert in table.alerts]
    assert (states.count(Status.FIRING), states.count(Status.RESOLVED)) == (15, 5)
    assert table.more == "… and 75 more firing, 25 more resolved"


def test_the_alerts_of_a_rule_without_a_table_are_counted() -> None:
    of = group(8, 0)
    first, second = of.event.alerts[:4], of.event.alerts[4:]
    other = tuple(replace(each, labels={**each.labels, "alertname": "Another"}) for each in second)
    of = replace(of, event=replace(of.event, alerts=first + other))
    parts, more = arrange_alerts(of, list_alerts(of), max_cards=5, max_tables=1, max_rows=7)
    assert ([type(part) for part in parts], more) == ([AlertTable], "… and 4 more firing")


@given(messages())
@settings(max_examples=200 if LONG else 40)
def test_every_alert_is_shown_or_counted(any_message: Message) -> None:
    parts, more = arrange_alerts(any_message, list_alerts(any_message), max_cards=5, max_tables=2, max_rows=7)
    listed = sum(len(part.alerts) if isinstance(part, AlertTable) else 1 for part in parts)
    left_out = [more, *(part.more for part in parts if isinstance(part, AlertTable))]
    counted = sum(int(token) for text in left_out for token in text.split() if token.isdecimal())
    assert listed + counted == len(any_message.event.alerts)
    for part in parts:
        if isinstance(part, AlertTable):
            assert len(part.alerts) == len(part.rows) <= 7
            assert all(len(cell) <= 80 and "\n" not in cell for row in part.rows for cell in row)
            ordered = [alert.status is Status.RESOLVED for alert in part.alerts]
            assert all(one <= other for one, other in pairwise(ordered))
