import json

from services.relay.intake import webhook as webhook_parser
from tests.faults.incidents import ALERTS, Alert, history, read_alerts, seeded
from tests.relay.delivery_oracle.evidence import AlertState


def test_the_same_seed_makes_the_same_incidents() -> None:
    assert list(history(seeded(7), 1, 30)) == list(history(seeded(7), 1, 30))
    assert list(history(seeded(7), 1, 30)) != list(history(seeded(8), 1, 30))


def test_the_relay_reads_them_as_alertmanagers() -> None:
    for number, sent in enumerate(history(seeded(1), 3, 30), start=1):
        event = webhook_parser.parse_whole_event(sent.body, "")
        stands = read_alerts("\n".join(alert.annotations["summary"] for alert in event.alerts))
        assert len(stands) == len(event.alerts)
        assert {alert for alert, _ in stands} <= {Alert(3, number) for number in range(ALERTS)}
        assert max(what.version for _, what in stands) == sent.number == number
        assert [what.state for _, what in stands].count("firing") == sum(a.status == "firing" for a in event.alerts)
        assert (event.status == "resolved") == all(what.state == "resolved" for _, what in stands)


def test_an_alert_that_is_over_is_reported_once() -> None:
    ends = [a for sent in history(seeded(1), 1, 50) for a in json.loads(sent.body)["alerts"] if a["endsAt"] > "0002"]
    assert len({(alert["fingerprint"], alert["endsAt"]) for alert in ends}) == len(ends) > 10


def test_groups_end_and_start_again() -> None:
    statuses = [json.loads(sent.body)["status"] for sent in history(seeded(1), 1, 50)]
    assert statuses.count("resolved") > 3
    assert "resolved, firing" in ", ".join(statuses)


def test_alerts_are_read_from_any_text() -> None:
    text = '*g1 a2 v30 firing* {"summary": "g1 a0 v4 resolved"} g1 a2 v30 firing; g1 a2 vx firing'
    assert read_alerts(text) == {(Alert(1, 2), AlertState(30, "firing")), (Alert(1, 0), AlertState(4, "resolved"))}
