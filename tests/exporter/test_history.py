"""What is remembered: enough for a person, and never more than its bounds."""

from dataclasses import replace
from typing import Any

import pytest

from services.exporter.history import (
    ROUND_TRIP_WINDOW,
    History,
    RoundTrips,
    TargetHistory,
)
from services.exporter.model import BackendState, Call, Failure, Operation, ProbeResult, TargetKey
from shared.kms.port import ConnectivityPhase
from shared.kms.reason import Cause, Reason

DENIED = Failure(Reason.PERMISSION_DENIED, "Permission 'useToEncrypt' denied")


def succeeded(at: float, *, target: str = "ledger-kek", encrypt: float = 0.004, decrypt: float = 0.006) -> ProbeResult:
    calls = (Call(Operation.ENCRYPT, encrypt), Call(Operation.DECRYPT, decrypt))
    return ProbeResult("backend", target, at, calls, "v/1")


def wrong(
    at: float, failure: Failure = DENIED, *, seconds: float = 0.002, connectivity: tuple[ConnectivityPhase, ...] = ()
) -> ProbeResult:
    return ProbeResult(
        "backend", "ledger-kek", at, (Call(Operation.ENCRYPT, seconds, failure),), None, connectivity=connectivity
    )


@pytest.fixture
def history() -> History:
    filled = History(clock=lambda: 5000.0)
    filled.configure({("backend", "ledger-kek"): TargetKey()}, ["backend"])
    return filled


@pytest.fixture
def ledger(history: History) -> TargetHistory:
    return history.targets["ledger-kek"]


def get_columns(round_trips: RoundTrips) -> list[Any]:
    return [round_trips.ended_at, round_trips.encrypt, round_trips.decrypt, round_trips.succeeded]


def test_a_measurement_that_finds_another_cause_leaves_the_failures_before_it_theirs(
    history: History, ledger: TargetHistory
) -> None:
    refused, healthy = Failure(Reason.UNAVAILABLE, "no", cause=Cause.CONNECT), ConnectivityPhase("dns", 0.1)
    broken = (ConnectivityPhase("tcp", 0.1, "no", Cause.CONNECT),)
    for at in (10, 15, 75):
        history.add_probe(wrong(at, refused, connectivity=broken))
    history.update_probe(wrong(75, replace(refused, cause=Cause.NONE), connectivity=(healthy,)))
    spans = [(one.first_at, one.last_at, one.count, one.cause, one.connectivity) for one in ledger.failure_spans]
    assert spans == [(10, 15, 2, Cause.CONNECT, broken), (75, 75, 1, Cause.NONE, (healthy,))]


def test_failures_of_one_kind_in_a_row_are_one_span_with_the_latest_error(
    history: History, ledger: TargetHistory
) -> None:
    history.add_probe(wrong(10, Failure(Reason.UNAVAILABLE, "first")))
    history.add_probe(wrong(40, Failure(Reason.UNAVAILABLE, "second")))
    history.add_probe(wrong(70, Failure(Reason.TIMEOUT, "third")))
    history.add_probe(succeeded(100))
    history.add_probe(wrong(130, Failure(Reason.TIMEOUT, "fourth")))
    spans = [(span.first_at, span.last_at, span.count, span.reason, span.detail) for span in ledger.failure_spans]
    assert spans == [
        (10, 40, 2, Reason.UNAVAILABLE, "second"),
        (70, 70, 1, Reason.TIMEOUT, "third"),
        (130, 130, 1, Reason.TIMEOUT, "fourth"),
    ]


def test_a_denial_that_is_diagnosed_is_one_span_with_what_was_found(history: History, ledger: TargetHistory) -> None:
    silent = replace(DENIED, is_silent=True)
    history.add_probe(wrong(10, silent))
    history.add_probe(wrong(15, replace(silent, cause=Cause.JUSTIFICATION, detail="probably the policy")))
    history.add_probe(wrong(20, replace(silent, detail="another denial")))
    history.add_probe(wrong(25, replace(DENIED, cause=Cause.PERIMETER)))
    assert [(span.first_at, span.count, span.cause) for span in ledger.failure_spans] == [
        (10, 2, Cause.JUSTIFICATION),
        (20, 1, Cause.NONE),
        (25, 1, Cause.PERIMETER),
    ]


def test_a_failure_gets_the_connectivity_that_is_measured_after_it_also_where_the_next_round_trip_succeeds(
    history: History, ledger: TargetHistory
) -> None:
    refused, broken = Failure(Reason.UNAVAILABLE, "refused"), (ConnectivityPhase("tcp", 0.1, "no", Cause.CONNECT),)
    measured = replace(refused, cause=Cause.CONNECT)
    history.add_probe(wrong(10, refused))
    history.update_probe(wrong(10, measured, connectivity=broken))
    assert ledger.last_result == wrong(10, measured, connectivity=broken)
    history.add_probe(wrong(15, measured, connectivity=broken))
    history.add_probe(succeeded(20))
    history.update_probe(wrong(15, connectivity=()))
    assert [(span.first_at, span.count, span.cause, span.connectivity) for span in ledger.failure_spans] == [
        (10, 2, Cause.CONNECT, broken)
    ]


def test_a_failure_outlives_the_hour_and_a_success_does_not(history: History, ledger: TargetHistory) -> None:
    history.add_probe(wrong(0))
    history.add_probe(succeeded(30))
    history.add_probe(succeeded(31 + ROUND_TRIP_WINDOW))
    assert list(ledger.round_trips.ended_at) == [31 + ROUND_TRIP_WINDOW]
    assert len(ledger.failure_spans) == 1


def test_an_hour_of_a_thousand_targets_every_30_seconds_stays_under_20_megabytes() -> None:
    history = History()
    names = [f"target-{n}" for n in range(1000)]
    history.configure(dict.fromkeys([("backend", name) for name in names], TargetKey()), [])
    for name in names:
        for n in range(240):
            history.add_probe(succeeded(30.0 * n, target=name))
    columns = [column for record in history.targets.values() for column in get_columns(record.round_trips)]
    assert {len(column) for column in columns} == {121}
    assert sum(column.__sizeof__() for column in columns) < 4_000_000  # of 20 MB; the rest is for the sentences


def test_what_a_reload_took_out_is_forgotten_and_what_it_left_is_kept(history: History, ledger: TargetHistory) -> None:
    history.add_probe(succeeded(1))
    history.set_backend_states([BackendState("backend", None, problems=("refused",))])
    history.configure(
        dict.fromkeys([("backend", "ledger-kek"), ("other", "second")], TargetKey()), ["backend", "other"]
    )
    assert history.targets["ledger-kek"] is ledger
    assert history.targets["second"].last_result is None
    assert [(record.service, record.state is None) for record in history.backends.values()] == [
        ("backend", False),
        ("other", True),
    ]
    history.configure({("other", "ledger-kek"): TargetKey()}, ["other"])
    assert history.targets["ledger-kek"].last_result is None  # the same name, but of another service
    assert list(history.backends) == [("other", None)]


def test_replicas_are_distinguished_and_replace_the_backend_without_one(history: History) -> None:
    history.set_backend_states([BackendState("backend", None, replica=f"10.0.0.{n}") for n in (1, 2)])
    assert list(history.backends) == [("backend", "10.0.0.1"), ("backend", "10.0.0.2")]
    history.set_backend_states([BackendState("backend", None, replica="10.0.0.2")])
    assert list(history.backends) == [("backend", "10.0.0.2")]
    history.set_backend_states([BackendState("backend", None)])
    assert list(history.backends) == [("backend", None)]
