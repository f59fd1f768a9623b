"""Profile `postgres`: two relays share an outbox; one that is killed costs nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import storm
from tests.containers.compose_stack import Composed, composed
from tests.containers.engine import Engine, privileges

STORM = 400
KILLED, LEFT = "relay-1", "relay-2"


@pytest.fixture(scope="module")
def both(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with composed(engine, "postgres", tmp_path_factory.mktemp("postgres")) as project:
        project.up("secrets", "postgres", "stand-ins", KILLED, LEFT)
        yield project


async def test_two_relays_share_a_storm_and_one_that_is_killed_loses_nothing(both: Composed) -> None:
    token = (both.secrets / "relay/relay_token").read_text().strip()
    pid = both.pid(KILLED)

    def kill(accepted: int) -> None:
        if accepted == STORM // 2:
            os.kill(pid, signal.SIGKILL)

    await storm.strike(both.urls(KILLED, LEFT), token, range(STORM), kill)
    assert await storm.arrived(both.ports.build_url("stand_ins"), range(STORM)) == set()
    both.until_healthy(KILLED)
    assert both.pid(KILLED) != pid


def test_postgresql_gives_up_what_it_starts_with(both: Composed) -> None:
    first = both.pid("postgres")
    serving = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
    servers = [may for may in map(privileges, serving) if may["Name"] == "postgres"]
    assert servers, "root gives the folder away, and goes on as another"
    for may in servers:
        assert "0" not in may["Uid"].split()
        assert (may["CapEff"], may["NoNewPrivs"]) == ("0000000000000000", "1")
