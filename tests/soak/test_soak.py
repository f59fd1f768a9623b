"""A short day is played to its end, and each line of the ledger fails where its promise is broken."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.relay.delivery_oracle.evidence import Delivery, Event
from tests.soak import ledger
from tests.soak.alerts import Episode
from tests.soak.day import Happened
from tests.soak.ledger import Outbox
from tests.soak.plan import ENDING, OTHERS, build_plan
from tests.soak.received import Page
from tests.soak.samples import Memory, measure_slope

EVENT = Event(1, "e1", "i1", "", frozenset(), ("slack", "pagerduty"))
PAGED = Delivery("d2", 2, 1, 1, "i1", "pagerduty", "delivered")
OUTBOX = Outbox([EVENT], [replace(PAGED, id="d1", seq=1, channel="slack"), PAGED], {"d2": "key"}, {"i1": "soak-00001"})
EPISODES = {"soak-00001": [Episode(100, 160)]}
PROOFS = [
    {"started": f"1970-01-01T00:0{half // 2}:{half % 2 * 30:02}Z", "channels": [{"channel": "slack", "level": level}]}
    for half, level in enumerate(["accepted", None, *["accepted"] * 8])
]
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
        ledger.check_proofs(PROOFS, ['{"alertname":"KMSPathUnproven","channel":"slack"}'], 300),
        ledger.check_proofs(PROOFS, ["RelayStoreUnavailable"], 300),
        ledger.check_disk({503: 1}, [Happened("disk full", 90, 120)]),
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
        (ledger.check_proofs(PROOFS, ["the path is lost"], 300), "1 gaps, 1 without an alert: slack, 1 times, told 0"),
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


def test_memory_that_grows_has_a_slope_and_a_peak_has_none() -> None:
    def measure(mb: Callable[[int], float]) -> float:
        return measure_slope([Memory(at, 1, 200, mb(at)) for at in range(600)])

    assert measure(lambda at: 100 + at / 60) == pytest.approx(60)
    assert measure(lambda at: 150 if at == 300 else 100) == 0
