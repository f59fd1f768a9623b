"""Requested silences: each press is one, of an incident one is created at a time, and only under a lease that lasts."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from services.relay.acknowledgement.store import EpisodeOverError
from services.relay.incidents.queries import UnknownIncidentError
from services.relay.outbox.store import Store, open_store
from services.relay.silences import store as silences
from services.relay.silences.store import (
    SilenceLeaseLostError,
    SilencePlan,
    SilenceRefusedError,
    SilenceRequest,
    SilenceRow,
    SilenceState,
    begin_silence,
    claim_silence,
    finish_silence,
    has_due,
    postpone_silence,
    prune_silences,
    record_answer,
    request_silence,
)
from shared.sql.database_url import DatabaseUrl
from tests.relay.outbox.actions import accept
from tests.relay.outbox.channel_breakers import Clock
from tests.relay.served_relay import event_of
from tests.stores import each_store


@pytest.fixture
async def store(database: DatabaseUrl) -> AsyncIterator[Store]:
    async with open_store(database, Clock()) as store:
        yield store


def press_of(press: str, incident: str, episode: int) -> SilenceRequest:
    return SilenceRequest(press, incident, episode, "anna", "slack:U1", "slack", "C1", "1.000001", "U1")


async def request(store: Store, press: str, incident: str = "one", episode: int = 1) -> SilenceRow:
    """A press, claimed at once."""
    assert await request_silence(store, press_of(press, incident, episode))
    assert await store.read(partial(has_due, clock=store.clock))  # by the database's clock
    row = await claim_silence(store, 60.0)
    assert row is not None
    assert row.id == press
    return row


async def begin(store: Store, row: SilenceRow) -> SilencePlan:
    return await begin_silence(store, row, seconds=60.0, alertmanager="http://a", created_by="Anna")


async def finish(store: Store, row: SilenceRow, state: SilenceState) -> None:
    """It has ended, and the person has the answer."""
    await finish_silence(store, row, state, "What became of it.", "a-silence")
    await record_answer(store, row)


@each_store
async def test_one_of_several_presses_is_created(store: Store) -> None:
    await accept(store, "one", "slack")
    first, second = await request(store, "1"), await request(store, "2")
    assert not await request_silence(store, press_of("1", "one", 1))
    assert (await begin(store, first)).labels == {**event_of().common_labels, **event_of().group_labels}
    with pytest.raises(SilenceRefusedError, match="silenced already, by Anna"):
        await begin(store, second)
    await finish(store, first, SilenceState.CREATED)
    with pytest.raises(SilenceRefusedError, match="silenced already, by Anna"):  # not every peer may know of it yet
        await begin(store, second)
    await accept(store, "two", "slack")
    await begin(store, await request(store, "3", "two"))


async def test_one_that_failed_or_is_over_hinders_no_other(store: Store) -> None:
    await accept(store, "one", "slack")
    first, second = await request(store, "1"), await request(store, "2")
    await begin(store, first)
    await finish(store, first, SilenceState.FAILED)
    await begin(store, second)
    last = await request(store, "3")
    await accept(store, "one", "slack", is_open=False, event=event_of("resolved"))
    await accept(store, "one", "slack", episode=2)
    with pytest.raises(SilenceRefusedError, match="this incident is over"):
        await begin(store, last)


async def test_nothing_is_requested_of_an_episode_that_is_over_or_unknown(store: Store) -> None:
    await accept(store, "one", "slack")
    await accept(store, "one", "slack", is_open=False, event=event_of("resolved"))
    with pytest.raises(EpisodeOverError, match="episode 1 is over; the incident is resolved"):
        await request(store, "1")
    await accept(store, "one", "slack", episode=2)
    with pytest.raises(EpisodeOverError, match="episode 1 is over; the incident fires again as episode 2"):
        await request(store, "1")
    for incident, episode in (("one", 3), ("another", 1)):
        with pytest.raises(UnknownIncidentError):
            await request(store, "1", incident, episode)
    assert await claim_silence(store, 60.0) is None
    assert (await request(store, "1", episode=2)).episode == 2


@each_store
async def test_who_has_lost_the_lease_changes_nothing(store: Store) -> None:
    await accept(store, "one", "slack")
    late = await request(store, "1")
    await postpone_silence(store, late, -1.0)
    row = await claim_silence(store, 60.0)
    assert row is not None
    for change in (
        begin(store, late),
        finish_silence(store, late, SilenceState.CREATED, "Silenced."),
        record_answer(store, late),
        postpone_silence(store, late, 0.0),
    ):
        with pytest.raises(SilenceLeaseLostError):
            await change
    assert row.state == SilenceState.REQUESTED
    assert await claim_silence(store, 60.0) is None  # while the lease lasts
    assert not await store.read(partial(has_due, clock=store.clock))
    await begin(store, row)


async def test_what_waits_is_bounded_and_what_is_over_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silences, "_WAITING_IDS", silences._WAITING_IDS.limit(2))
    monkeypatch.setattr(silences, "_MAX_WAITING", 2)
    await accept(store, "one", "slack")
    first, second = await request(store, "1"), await request(store, "2")
    with pytest.raises(SilenceRefusedError, match="Too many silences wait"):
        await request(store, "3")
    await finish(store, first, SilenceState.REFUSED)
    await request(store, "3")
    assert await prune_silences(store, 0.0) == 0
    assert await prune_silences(store, 1e12) == 1, "the first one: the others wait"
    await finish(store, second, SilenceState.FAILED)
    await request(store, "1")  # the row of the first press is gone
