from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from hypothesis import given, settings

from services.relay.model import Alert, Message, Status
from services.relay.text import AlertTable, arrange_alerts
from tests.iterations import LONG
from tests.relay.channels.examples import message, messages


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
    (table,), more = arrange_alerts(of, max_cards=25, max_tables=5, max_rows=max_rows)
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


@given(messages())
@settings(max_examples=200 if LONG else 40)
def test_every_alert_is_shown_or_counted(any_message: Message) -> None:
    parts, more = arrange_alerts(any_message, max_cards=5, max_tables=2, max_rows=7)
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
