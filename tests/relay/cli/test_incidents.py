"""`keypulse-relay incidents`, `acknowledge` and `unacknowledge`: what a person on call types."""

import json
import os
import pwd

from services.relay.acknowledgement.store import escalate_due
from services.relay.model import Claim, EscalationStep
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.actions import accept, claim_one, end_attempt
from tests.relay.outbox.rows import Rows
from tests.relay.served_relay import event_of

WHO = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"
HOSTILE = "\x1b[31mred\u202e"


async def some(rows: Rows) -> None:
    (alert,) = event_of().alerts
    hostile = event_of(alerts=(alert,), group_labels={"alertname": HOSTILE})
    await accept(rows.store, "over", "mail", is_open=False, event=event_of("resolved"))
    await accept(rows.store, "burning", "pager", event=hostile, escalation=(EscalationStep(0.0, ("slack",)),))
    await end_attempt(rows.store, await claim_one(rows.store, "pager"))
    await escalate_due(rows.store, ["slack"])


def test_incidents_are_listed_with_who_takes_care_of_them(typed: Typed, fill: Fill) -> None:
    fill(some)
    assert typed("acknowledge", "burning").stdout == f"acknowledged by {WHO}\n"
    assert typed("acknowledge", "burning").stdout == f"it was acknowledged before, by {WHO}\n"

    result = typed("incidents")

    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == ["burning", "over"]
    assert lines[1].startswith("  firing, critical, since 20")
    assert lines[1].endswith("Z: [31mred")
    assert lines[2].startswith(f"  acknowledged by {WHO}, 20")
    assert lines[3].startswith("  escalated to slack, 20")
    assert lines[4] == "  channels: pager, slack"
    assert typed("incidents", "--status", "resolved", "--limit", "1").stdout.splitlines()[0] == "over"
    (found,) = map(json.loads, typed("incidents", "--status", "firing", "--json").stdout.splitlines())
    assert (found["id"], found["acknowledged_by"], found["acknowledged_via"]) == ("burning", WHO, "command line")

    assert typed("unacknowledge", "burning").stdout == "withdrawn\n"
    assert typed("unacknowledge", "burning").stdout == "nobody had acknowledged it\n"

    async def page(rows: Rows) -> Claim:
        return await claim_one(rows.store, "pager")

    assert fill(page).task.remark == f"Acknowledged by {WHO}."


def test_what_cannot_be_acknowledged_is_one_line(typed: Typed, fill: Fill) -> None:
    fill(some)
    for command in ("acknowledge", "unacknowledge"):
        result = typed(command, "over")
        refused = "over: episode 1 is over; the incident is resolved\n"
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", refused)
        result = typed(command, "unknown")
        assert (result.exit_code, result.stderr) == (1, "unknown: no such incident\n")
    result = typed("incidents", "--status", "open")
    assert (result.exit_code, result.stderr) == (2, "--status: expected one of firing, resolved, got 'open'\n")
    assert typed("incidents", "--limit", "0").exit_code == 2


def test_the_beginning_of_an_id_is_enough_where_no_other_one_begins_so(typed: Typed, fill: Fill) -> None:
    first, second = f"4f0c8{'0' * 59}", f"4f0c9{'0' * 59}"

    async def two(rows: Rows) -> None:
        for incident in (first, second):
            await accept(rows.store, incident, "mail")

    fill(two)
    several = typed("acknowledge", "4f0c")
    expected = "4f0c: several incidents begin with 4f0c, such as 4f0c80000000 and 4f0c90000000; write more of the id\n"
    assert (several.exit_code, several.stderr) == (1, expected)
    assert typed("acknowledge", "4F0C8").stdout == f"acknowledged by {WHO}\n"
    assert typed("unacknowledge", first).stdout == "withdrawn\n"
    assert typed("acknowledge", "4f0ca").stderr == "4f0ca: no such incident\n"


def test_a_period_before_now_chooses_incidents_and_deliveries(typed: Typed, fill: Fill) -> None:
    fill(some)
    assert len(typed("incidents", "--since", "1h", "--json").stdout.splitlines()) == 2
    assert len(typed("deliveries", "--since", "1h", "--json").stdout.splitlines()) == 3
    assert typed("incidents", "--since", "2999-01-01T00:00:00Z").stdout == ""
    assert typed("incidents", "--since", "5").exit_code == 2
