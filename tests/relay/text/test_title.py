from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.relay.model import IncidentContext
from services.relay.text.title import (
    MAX_TITLE,
    format_class,
    format_end,
    format_omission,
    format_subject,
    format_title,
)
from tests.relay.channels.examples import HUGE, TITLE, annotated, change, message, titled

HEADLINE = "KMSCryptoModeNotKMS · production / backend"


def test_the_cause_comes_first_and_the_class_after_it() -> None:
    firing = titled(message())
    assert (format_title(firing), format_class(firing), format_subject(firing)) == (TITLE, HEADLINE, TITLE)


def test_the_end_has_another_subject_with_its_duration() -> None:
    over = titled(message("03-resolved-1"))
    assert format_title(over) == TITLE
    assert format_subject(over) == f"Resolved after 8 s: {TITLE}"
    assert format_subject(change(over, firing_undelivered=True)) == f"Fired and resolved within 8 s: {TITLE}"


def test_an_alert_without_a_cause_keeps_its_headline() -> None:
    assert (format_title(message()), format_class(message())) == (HEADLINE, "")
    assert format_subject(message()) == f"Firing: {HEADLINE}"
    assert format_subject(message("03-resolved-1")) == f"Resolved after 8 s: {HEADLINE}"


def test_a_teams_own_title_wins() -> None:
    assert format_title(replace(titled(message()), title=" Ours\nis better ")) == "Ours is better"


def test_the_title_is_that_of_the_worst_alert_that_fires() -> None:
    of = message("07-firing-3")
    over, warning, critical = of.event.alerts[0], *of.event.alerts[1:]
    assert over.ends_at is not None
    alerts = (
        replace(over, annotations={"title": "over"}, labels={**over.labels, "severity": "critical"}),
        replace(warning, annotations={"title": "a warning"}),
        replace(critical, annotations={"title": "critical"}, labels={**critical.labels, "severity": "critical"}),
    )
    assert format_title(replace(of, event=replace(of.event, alerts=alerts))) == "critical"
    assert format_title(replace(of, event=replace(of.event, alerts=alerts[:2]))) == "a warning"
    without = (alerts[0], replace(alerts[1], annotations={}))
    assert format_title(replace(of, event=replace(of.event, alerts=without))) == "over", "better than none"


def test_an_incident_lasts_from_its_first_start_to_its_last_end() -> None:
    over = message("03-resolved-1")
    (alert,) = over.event.alerts
    early = IncidentContext(started_at=alert.starts_at - timedelta(minutes=12))
    assert format_end(change(over, context=early)) == "Resolved after 12 min"
    endless = replace(over.event, alerts=(replace(alert, ends_at=None),))
    assert format_end(replace(over, event=endless)) == "Resolved after 2 s", "until the webhook came"
    extreme = replace(alert, starts_at=datetime(9999, 12, 31, tzinfo=UTC), ends_at=datetime(1, 1, 1, tzinfo=UTC))
    assert format_end(replace(over, event=replace(over.event, alerts=(extreme,)))) == "Resolved after 0 s"


@pytest.mark.parametrize("text", HUGE)
def test_a_long_cause_is_cut(text: str) -> None:
    assert len(format_title(annotated(message(), title=text))) <= MAX_TITLE


def test_a_group_that_is_not_whole_says_so() -> None:
    event = message("09-firing-5").event
    assert format_omission(event) == (
        "Some alerts of this group are missing here: 7 cut off by Alertmanager. Alertmanager shows them."
    )
    both = replace(event, unlisted_firing=bytes(16))
    assert "7 cut off by Alertmanager, 2 too many to list" in format_omission(both)
    assert format_omission(message().event) == ""
