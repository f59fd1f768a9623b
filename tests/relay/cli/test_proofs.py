"""`keypulse-relay proofs`: what API and page show, as tables and as JSON."""

import json
from functools import partial

from services.relay.outbox.proofs import Hop
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.rows import Rows
from tests.relay.proofs.seeded_proofs import EVERY, seed_proofs, serve_since


async def seed(rows: Rows) -> float:
    await rows.store.run(partial(serve_since, names=["slack", "mail"], at=1.0))
    return await seed_proofs(
        rows.store,
        ("slack", "mail"),
        20 * EVERY,
        lambda name, _at: (Hop.CHANNEL, "451 \x1b[31m") if name == "mail" else "accepted",
    )


def test_tables_and_json_say_how_far_each_channel_is_proven(typed: Typed, fill: Fill) -> None:
    assert typed("proofs").exit_code == 0, "before the first"
    fill(seed)
    result = typed("proofs")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(line.startswith("slack yes accepted ") for line in lines)
    assert any(line.startswith("mail no - - channel 451 ") for line in lines)
    assert sum(line.endswith("backend prod 40.0 s 41.5 s 1 min 2.0 s 1 min 2.2 s 1 of 2") for line in lines) == 10
    assert "\x1b" not in result.stdout

    found = json.loads(typed("proofs", "--json").stdout)
    assert [(each["channel"], each["ok"]) for each in found["channels"]] == [
        ("log", None),
        ("mail", False),
        ("pager", None),
        ("slack", True),
    ]
    assert len(found["proofs"]) == 10
