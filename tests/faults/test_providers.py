"""A provider that asks to wait, and one that refuses everything for a while: nobody else waits for it."""

import asyncio
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault
from services.relay.outbox.tables import DeliveryState
from shared.sql import database_url
from shared.sql.database_url import DatabaseUrl
from tests.faults import stored_deliveries
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.provider_disturbances import lose_answers
from tests.faults.relay import CHANNELS, SLACK_TOKEN, set_ahead
from tests.faults.scenario import Scenario, meanwhile
from tests.relay.served_relay import reaches, until

LONG_ATTEMPTS = {"timeout": "10s", "lease": "20s", "backoff_initial": "100ms", "backoff_max": "500ms"}
"""Providers that answer, however busy the machine is, are heard at the first attempt."""
WAIT = 600


async def test_retry_after_on_one_channel(tmp_path: Path, scenario: Scenarios) -> None:
    database = database_url.create_sqlite_url(tmp_path / "relay.db")
    trial = scenario(database)
    posts = trial.providers.slack.channels["#security-critical"].messages
    _break(trial, kind="rate_limit", seconds=WAIT, count=1)
    async with trial.relay(delivery=LONG_ATTEMPTS, clock_ahead=0) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), pause=0.1)
        first, *others = trial.histories(groups=5, length=4)
        await alertmanager.play([islice(first, 1)])
        # Before that, another delivery may be claimed and sent.
        await until(lambda: asyncio.to_thread(stored_deliveries.has_failed, database, "slack"))
        await alertmanager.play([islice(first, 1), *(islice(history, 2) for history in others)])
        await _all_but_slack_deliver(database)
        set_ahead(tmp_path, "relay", WAIT - 60)
        await alertmanager.play([first, *others])
        await _all_but_slack_deliver(database)
        assert not posts
        set_ahead(tmp_path, "relay", WAIT)
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.states["dead"] == sum(verdict.duplicates.values()) == len(verdict.late) == 0


@pytest.mark.played
async def test_answers_that_are_lost(tmp_path: Path, scenario: Scenarios) -> None:
    """Everything arrives, and nobody is told so: Slack is asked, and the others know a repeat by its key."""
    trial = scenario(database_url.create_sqlite_url(tmp_path / "relay.db"))
    for provider in Provider:
        trial.providers.faults.add(ProviderFault(provider=provider, kind=FaultKind.LOST_ANSWER, count=5))
    async with trial.relay(delivery=LONG_ATTEMPTS) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), repeats=0)
        await alertmanager.play(trial.histories(groups=5, length=1))
        await trial.drained()
        assert trial.providers.faults.get_state() == []
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert +verdict.duplicates == {"email": 5 * len(CHANNELS["email"].readers)}
    assert len(trial.providers.pagerduty.events) == 2 * len(trial.providers.pagerduty.incidents) == 10


@pytest.mark.played
async def test_answers_that_are_lost_many_times_in_a_row(
    database: DatabaseUrl, scenario: Scenarios, long: bool
) -> None:
    """However many attempts nobody answered, each message is found in the end: none shows what is over."""
    trial = scenario(database)
    async with trial.relay() as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), pause=0.2)
        async with meanwhile(lose_answers(trial.providers.faults, trial.random("faults"))):
            await alertmanager.play(trial.histories(groups=8, length=40 if long else 8))
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert trial.done["stale"] == len(verdict.late) == 0


@pytest.mark.played
async def test_a_token_revoked_while_a_message_whose_answer_was_lost_is_searched_for(
    database: DatabaseUrl, scenario: Scenarios
) -> None:
    """The search says nothing then, so nothing is posted: of two first messages nobody would edit the other."""
    trial = scenario(database)
    _break(trial, kind="lost_answer", method="chat.postMessage", count=1)
    _break(trial, kind="error", error="token_revoked", method="conversations.history", count=1)
    async with trial.relay(delivery=LONG_ATTEMPTS) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), pause=0.1)
        await alertmanager.play(trial.histories(groups=1, length=8))
        await trial.drained()
        assert trial.providers.faults.get_state() == []
        await trial.concluded(alertmanager)
        await relay.stop()
    assert trial.done["stale"] == 0


@pytest.mark.played
async def test_a_dead_letter_between_a_message_whose_answer_was_lost_and_the_next_one(
    database: DatabaseUrl, scenario: Scenarios
) -> None:
    """The next one becomes that message, as the dead letter would have."""
    trial = scenario(database)
    _break(trial, kind="lost_answer", method="chat.postMessage", count=1)
    _break(trial, kind="status", method="conversations.history")
    async with trial.relay(delivery=LONG_ATTEMPTS) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), repeats=0)
        (history,) = trial.histories(groups=1, length=3)
        await alertmanager.play([islice(history, 1)])
        await until(lambda: asyncio.to_thread(stored_deliveries.has_failed, database, "slack"))
        await alertmanager.play([islice(history, 1)])
        await _ends(database, DeliveryState.SUPERSEDED)
        trial.providers.faults.clear()
        _break(trial, kind="error", error="no_text", method="chat.update", count=1)
        await _ends(database, DeliveryState.DEAD)
        await alertmanager.play([history])
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.states["dead"] == 1
    assert trial.done["stale"] == 0
    assert len(trial.providers.slack.channels["#security-critical"].messages) == 1


@pytest.mark.played
async def test_token_revoked_for_an_hour_and_given_back(tmp_path: Path, scenario: Scenarios) -> None:
    database = database_url.create_sqlite_url(tmp_path / "relay.db")
    trial = scenario(database)
    async with trial.relay(delivery=LONG_ATTEMPTS | {"backoff_max": "5m"}, clock_ahead=0) as relay:
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), pause=0.1)
        histories = trial.histories(groups=5, length=8)
        await alertmanager.play([islice(history, 4) for history in histories])
        _break(trial, kind="error", error="token_revoked")
        await alertmanager.play([islice(history, 2) for history in histories])
        await reaches(relay.http, 0, "relay_channel_up", channel="slack")
        for minutes in (20, 40, 60):
            await _all_but_slack_deliver(database)
            attempts = await _count_attempts(database)
            set_ahead(tmp_path, "relay", 60.0 * minutes)
            # Committed before the clock goes on: an outcome that comes after it would pause the channel anew.
            await _wait_for_attempt(database, attempts)
        await alertmanager.play(histories)
        await _all_but_slack_deliver(database)

        async def is_one_for_each_group() -> bool:
            """Once what was being sent as the last events came is merged into them."""
            return await asyncio.to_thread(stored_deliveries.count_queued, database, "slack") == 5

        await until(is_one_for_each_group)
        trial.providers.faults.clear()
        set_ahead(tmp_path, "relay", 60.0 * 70)
        verdict = await trial.concluded(alertmanager)
        await reaches(relay.http, 1, "relay_channel_up", channel="slack")
        await relay.stop()
    assert verdict.states["dead"] == sum(verdict.duplicates.values()) == len(verdict.late) == 0


async def test_token_replaced_by_a_new_one(tmp_path: Path, scenario: Scenarios) -> None:
    database = database_url.create_sqlite_url(tmp_path / "relay.db")
    trial = scenario(database)
    async with trial.relay(delivery=LONG_ATTEMPTS | {"backoff_max": "1h"}) as relay:
        (tmp_path / "slack_token").write_text("xoxb-revoked")
        alertmanager = Alertmanager([relay.url], trial.random("alertmanager"), pause=0.1)
        await alertmanager.play(trial.histories(groups=3, length=4))
        await reaches(relay.http, 0, "relay_channel_up", channel="slack")
        await _all_but_slack_deliver(database)
        (tmp_path / "slack_token").write_text(SLACK_TOKEN)
        verdict = await trial.concluded(alertmanager)
        await reaches(relay.http, 1, "relay_channel_up", channel="slack")
        await relay.stop()
    assert verdict.states["dead"] == sum(verdict.duplicates.values()) == len(verdict.late) == 0


async def _ends(database: DatabaseUrl, state: DeliveryState) -> None:
    """Returns once a delivery has ended so on Slack."""

    async def so() -> bool:
        _, stored = await asyncio.to_thread(stored_deliveries.read_outbox, database)
        return any((each.channel, each.state) == ("slack", state) for each in stored)

    await until(so)


async def _count_attempts(database: DatabaseUrl) -> int:
    return await asyncio.to_thread(stored_deliveries.count_attempts, database, "slack")


async def _wait_for_attempt(database: DatabaseUrl, before: int) -> None:
    """Returns once Slack has been asked once more."""

    async def so() -> bool:
        return await _count_attempts(database) > before

    await until(so)


def _break(trial: Scenario, **fault: Any) -> None:
    trial.providers.faults.add(
        ProviderFault.model_validate({"provider": "slack", "target": "#security-critical", **fault})
    )


async def _all_but_slack_deliver(database: DatabaseUrl) -> None:
    async def so() -> bool:
        return set(await asyncio.to_thread(stored_deliveries.count_unfinished, database)) <= {"slack"}

    await until(so)
