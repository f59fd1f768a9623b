"""`keypulse-relay retry`: what was given up goes out again, with or without a relay beside it."""

import asyncio
import os
import pwd
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import select

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.outbox.audit import OutboxAudit
from services.relay.outbox.tables import DeliveryState, deliveries
from shared.sql.database_url import DatabaseUrl
from tests.fork_server import forked
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import Scripted, post, reaches, served, settings, webhook_of


async def one_of_each(rows: Rows) -> dict[str, str]:
    """The id of a delivery in each state, of an incident of its own; and of a dead one of a channel that is gone."""
    stored = {
        state.value: await rows.delivery(await rows.event(state.value), "pager", state) for state in DeliveryState
    }
    return stored | {"gone": await rows.delivery(await rows.event("gone"), "gone", DeliveryState.DEAD)}


async def states(rows: Rows) -> dict[str, int]:
    """How many deliveries are in each state."""
    found = await rows.store.read(lambda connection: connection.execute(select(deliveries.c.state)).scalars().all())
    return {state: list(found).count(state) for state in set(found)}


async def given_up(rows: Rows) -> None:
    for incident in ("a", "b", "c"):
        await rows.delivery(await rows.event(incident), "pager", DeliveryState.DEAD)
    await rows.delivery(await rows.event("d"), "mail", DeliveryState.DEAD)
    await rows.delivery(await rows.event("e"), "gone", DeliveryState.DEAD)


def test_some_are_retried_by_their_ids(typed: Typed, fill: Fill) -> None:
    stored = fill(one_of_each)
    result = typed("retry", stored["dead"], stored["retrying"], stored["queued"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "3 requeued\n", "")
    assert fill(states) == {"queued": 2, "sending": 1, "retrying": 1, "delivered": 1, "superseded": 2, "dead": 1}


def test_each_that_cannot_be_is_a_line_and_the_others_are_retried(typed: Typed, fill: Fill) -> None:
    stored = fill(one_of_each)
    ids = [stored[name] for name in ("delivered", "sending", "dead", "superseded", "gone")]
    result = typed("retry", ids[0], "unknown", *ids[1:])
    assert (result.exit_code, result.stdout) == (1, "1 requeued\n")
    assert result.stderr.splitlines() == [
        f"{stored['delivered']}: there is nothing to try again: it was delivered",
        "unknown: no such delivery",
        f"{stored['sending']}: there is nothing to try again: it is being sent",
        f"{stored['superseded']}: there is nothing to try again: another delivery supersedes it",
        f"{stored['gone']}: its channel, gone, is not configured any more",
    ]
    assert fill(states) == {"queued": 2, "sending": 1, "retrying": 1, "delivered": 1, "superseded": 2, "dead": 1}


def test_all_of_a_channel_are_retried(typed: Typed, fill: Fill) -> None:
    fill(given_up)
    assert typed("retry", "--channel", "pager").stdout == "3 requeued\n"
    assert fill(states) == {"superseded": 3, "queued": 3, "dead": 2}
    assert typed("retry", "--channel", "pager").stdout == "0 requeued\n"


def test_the_audit_names_which_account_of_this_machine_retried_what(typed: Typed, fill: Fill) -> None:
    stored = fill(one_of_each)
    typed("retry", stored["dead"], stored["delivered"])
    typed("retry", "--channel", "pager")

    async def audit(rows: Rows) -> list[tuple[str, str | None, str, str]]:
        entries, _ = await OutboxAudit(rows.store).list_entries(10, None)
        return [(each.who, each.peer, each.action, each.on) for each in entries]

    who = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
    assert fill(audit) == [
        (who, "command line", "retry all", "pager"),
        (who, "command line", "retry", stored["dead"]),
    ]


async def test_a_relay_that_runs_sends_it_within_seconds(
    tmp_path: Path, database: DatabaseUrl, configuration: Path
) -> None:
    channel = Scripted(SendError(SendReason.REJECTED, SendScope.MESSAGE, "invalid_blocks"))
    async with served(settings(tmp_path, {"pager": channel}, database=database.render_as_string())) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_outbox_deliveries", channel="pager", state="dead")
        command = [
            *forked("services.relay"),
            "--config",
            str(configuration),
            "retry",
            "--channel",
            "pager",
        ]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        await reaches(client, 1, "relay_deliveries_total", channel="pager", outcome="delivered")
    assert len(channel.sent) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["an-id", "--all"], ["--all", "--channel", "pager"], ["an-id", "--channel", "pager"]]
)
def test_exactly_one_of_ids_channel_and_all_is_expected(typed: Typed, arguments: list[str]) -> None:
    result = typed("retry", *arguments)
    assert (result.exit_code, result.stderr) == (2, "expected one of: IDs, --channel, --all\n")


def test_an_unknown_channel_exits_with_2_and_those_that_exist(typed: Typed) -> None:
    result = typed("retry", "--channel", "x")
    assert result.exit_code == 2
    assert result.stderr == "--channel: no such channel; expected one of log, mail, pager, slack, got 'x'\n"
