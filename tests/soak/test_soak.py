"""A short day is played to its end, and each line of the ledger fails where its promise is broken."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ops.demo.stand_ins.mail_server import ReceivedMail
from tests.relay.delivery_oracle.evidence import Delivery, Event
from tests.soak import ledger
from tests.soak.alerts import Episode
from tests.soak.day import Happened
from tests.soak.ledger import Outbox
from tests.soak.plan import ENDING, OTHERS, build_plan
from tests.soak.received import Page, Told, read_mail
from tests.soak.samples import Memory, measure_slope

EVENT = Event(1, "e1", "i1", "", frozenset(), ("slack", "pagerduty"))
PAGED = Delivery("d2", 2, 1, 1, "i1", "pagerduty", "delivered")
OUTBOX = Outbox([EVENT], [replace(PAGED, id="d1", seq=1, channel="slack"), PAGED], {"d2": "key"}, {"i1": "soak-00001"})
EPISODES = {"soak-00001": [Episode(100, 160)]}
PROOFS = [
    {"started": f"1970-01-01T00:0{half // 2}:{half % 2 * 30:02}Z", "channels": [{"channel": "slack", "level": level}]}
    for half, level in enumerate(["accepted", None, *["accepted"] * 8])
]
GAP = "1 gaps, 1 without an alert: slack, 60 s from 00:00:00 UTC"
LONG_AGO: list[Mapping[str, object]] = [{"started": "1969-12-31T23:55:00Z", "channels": []}, *PROOFS]
"""Never proven before that: another gap, which ends where `GAP` begins."""
UNPROVEN = '{"alertname":"KMSPathUnproven","channel":"slack"}'
OF_ALL = "[FIRING:1] RelayDown"
LIFE = [Memory(at, 1, 200, 100) for at in range(181)]
GROWING = [Memory(at, 1, 200, 100 + at / 3) for at in range(181)]
PAGE = Page("key", "soak-00001", 103, 161)


@pytest.mark.played
def test_a_short_day_is_played_and_its_ledger_holds(tmp_path: Path) -> None:
    picture = tmp_path / "soak.svg"
    command = [sys.executable, "-m", "tests.soak", "--minutes", "1", "--seed", "304", "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the ledger holds" in done.stdout
    assert "<svg" in picture.read_text()


def test_a_seed_is_a_day_in_which_each_kind_comes_once_before_any_comes_again() -> None:
    day = build_plan(1, 1200)
    assert day == build_plan(1, 1200) != build_plan(2, 1200)
    assert sorted(step.what for step in day) == sorted([*ENDING, *OTHERS])
    assert all(step.at < 400 for step in day if step.what in ENDING)
    assert {step.what for step in build_plan(1, 1200, sqlite=False)}.isdisjoint({"disk full", "clock ahead"})


def test_the_ledger_of_a_good_day_holds() -> None:
    lines = [
        ledger.check_intake(["e1"], OUTBOX, {}),
        *ledger.check_channels(OUTBOX),
        ledger.check_promises(OUTBOX),
        ledger.check_receipts(OUTBOX, {"key"}, 0),
        *ledger.check_pages(EPISODES, [PAGE], OUTBOX, []),
        ledger.check_proofs(PROOFS, [Told(40, UNPROVEN)], 300),
        ledger.check_proofs(PROOFS, [Told(69, "RelayStoreUnavailable")], 300),
        ledger.check_proofs(PROOFS, [Told(-90, OF_ALL)], 300),
        ledger.check_proofs(PROOFS, [Told(40, UNPROVEN), Told(61, UNPROVEN, is_firing=False)], 300),
        ledger.check_disk({503: 1}, [Happened("disk full", 90, 120)]),
        ledger.check_memory("relay", 512, LIFE, LIFE, 1200),
        ledger.check_memory("relay", 512, LIFE, [], 60),
    ]
    assert [line.what for line in lines if not line.holds] == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (ledger.check_intake(["e1", "e2"], OUTBOX, {}), "1 of them not in the outbox: e2"),
        (ledger.check_intake([], OUTBOX, {}), "0 webhooks"),
        (next(ledger.check_channels(OUTBOX._replace(deliveries=[replace(PAGED, state="queued")]))), "1 are left"),
        (ledger.check_promises(OUTBOX._replace(deliveries=[PAGED])), "event 1 has no delivery on slack"),
        (ledger.check_receipts(OUTBOX, set(), 0), "1 of them without a message at the provider: d2"),
        (ledger.check_receipts(OUTBOX, {"key"}, 1), "forgot messages"),
        (next(ledger.check_pages(EPISODES, [], OUTBOX, [])), "1 of them paged nobody: soak-00001"),
        ([*ledger.check_pages(EPISODES, [PAGE, PAGE], OUTBOX, [])][1], "1 alerts paged more often than they began"),
        ([*ledger.check_pages(EPISODES, [replace(PAGE, resolved=None)], OUTBOX, [])][2], "1 are open"),
        (ledger.check_proofs(PROOFS, [Told(40, "the path is lost")], 300), GAP),
        (ledger.check_proofs(PROOFS, [Told(40, UNPROVEN.replace("slack", "mail"))], 300), GAP),
        (ledger.check_proofs(PROOFS, [Told(40, OF_ALL, is_firing=False)], 300), GAP),
        (ledger.check_proofs(PROOFS, [Told(71, OF_ALL), Told(200, OF_ALL)], 300), GAP),
        (ledger.check_proofs(PROOFS, [Told(-121, OF_ALL)], 300), GAP),
        (ledger.check_proofs(PROOFS, [Told(-90, OF_ALL), Told(-5, OF_ALL, is_firing=False)], 300), GAP),
        (ledger.check_proofs(LONG_AGO, [Told(-200, OF_ALL), Told(-199, OF_ALL)], 300), "2 gaps, 1 without an alert"),
        (ledger.check_memory("relay", 512, LIFE, [], 1200), "own memory was not watched: 0 s after a storm"),
        (ledger.check_memory("relay", 512, LIFE, LIFE[:180], 600), "was not watched: 179 s after a storm"),
        (ledger.check_memory("relay", 200, LIFE, LIFE, 1200), "peak 200 of 200 MB"),
        (ledger.check_memory("relay", 512, LIFE, GROWING, 1200), "slope +1200.0 MB/h over 3 min"),
        (ledger.check_disk({502: 1}, [Happened("disk full", 90, 120)]), "0 webhooks answered 503"),
        (ledger.check_refusals([PAGE], [Happened("KMS refuses", 90, 120)]), "1 times without a page of the rules"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_broken_promise_is_a_line_that_does_not_hold(line: ledger.Line, what: str) -> None:
    assert not line.holds
    assert what in line.what


def test_an_alert_must_page_only_where_it_fired_for_long_enough_with_nothing_in_the_way() -> None:
    (hindered,) = EPISODES.values()
    obstacles = ledger.list_obstacles([Happened("disk full", 110, 140), Happened("Slack hangs", 100, 160)])
    assert ledger.measure_clear(hindered[0], obstacles) == 10
    assert ledger.measure_clear(hindered[0], []) == 60


def test_events_have_their_right_time_also_while_the_clock_is_wrong() -> None:
    right = [0.0, 60, 65, 80, 90, 95, 110, 115, 500]
    wrong = [0.0, 60, 665, 680, 90, -505, -490, 115, 500]
    assert ledger.undo_clock_steps(wrong) == right
    assert ledger.undo_clock_steps([0, 603, -594, 13, 20]) == [0, 3, 6, 13, 20]  # no event between the two steps
    assert ledger.undo_clock_steps([]) == []


def test_a_mail_tells_what_is_firing_apart_from_what_is_over() -> None:
    def told(subject: str, html: str) -> list[Told]:
        return read_mail(ReceivedMail(1, 5.0, [], "alertmanager@example.org", subject, "", {}, "", html))

    both = "<strong>[1] Firing</strong> channel = slack <strong>[1] Resolved</strong> channel = mail"
    firing, over = told("[FIRING:1] KMSPathUnproven", both)
    assert (firing.at, firing.is_firing, over.at, over.is_firing) == (5, True, 5, False)
    assert "KMSPathUnproven" in firing.text
    assert "slack" in firing.text
    assert "mail" not in firing.text
    assert "mail" in over.text
    assert [each.is_firing for each in told("[RESOLVED] RelayDown", "<strong>[1] Resolved</strong>")] == [False, False]


def test_memory_that_grows_has_a_slope_and_a_peak_has_none() -> None:
    def measure(mb: Callable[[int], float]) -> float:
        return measure_slope([Memory(at, 1, 200, mb(at)) for at in range(600)])

    assert measure(lambda at: 100 + at / 60) == pytest.approx(60)
    assert measure(lambda at: 150 if at == 300 else 100) == 0
