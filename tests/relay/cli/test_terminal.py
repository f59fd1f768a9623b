"""What a person sees in a terminal, and nobody else."""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from services.relay.deliveries.retries import STEP
from services.relay.outbox.tables import DeliveryState
from shared.sql.database_url import DatabaseUrl, create_sqlite_url
from tests import processes
from tests.fork_server import forked
from tests.relay.cli.conftest import Fill, Typed
from tests.relay.outbox.rows import Rows


@pytest.fixture
def database(tmp_path: Path) -> DatabaseUrl:
    return create_sqlite_url(tmp_path / "relay.db")


def in_a_terminal(configuration: Path, *arguments: str, columns: int = 80) -> str:
    """What a terminal shows of a command, without colours."""
    command = [*forked("services.relay"), "--config", str(configuration), *arguments]
    terminal, end = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment)
    os.close(end)
    output = b""
    while chunk := _read(terminal):
        output += chunk
    os.close(terminal)
    assert processes.end(process, seconds=60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode()).replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


async def one_with_long_names(rows: Rows) -> str:
    event = await rows.event("KMSHealthChecksFailing")
    return await rows.delivery(event, "slack-critical", DeliveryState.DEAD, reason="misconfigured")


def test_deliveries_fit_into_80_columns_with_every_text_whole(configuration: Path, fill: Fill) -> None:
    delivery_id = fill(one_with_long_names)
    *headings, upper, lower = in_a_terminal(configuration, "deliveries").split("\n")[:4]
    assert [heading.split() for heading in headings] == [
        ["id", "alertname", "state"],
        ["accepted", "status,", "channel", "attempts:", "reason"],
    ]
    assert upper.split() == [delivery_id, "Alert-KMSHealthChecksFailing", "dead"]
    assert lower.split()[1:] == ["firing,", "slack-critical", "1:", "misconfigured"]
    assert max(map(len, (*headings, upper, lower))) <= 80


def test_a_wide_terminal_and_a_pipe_have_a_line_for_each(configuration: Path, typed: Typed, fill: Fill) -> None:
    delivery_id = fill(one_with_long_names)
    for result in (in_a_terminal(configuration, "deliveries", columns=160), typed("deliveries").stdout):
        _, line = result.rstrip().split("\n")
        assert line.split()[0] == delivery_id
        assert line.split()[-1] == "misconfigured"


def test_a_bar_shows_long_work_to_a_person_and_to_nobody_else(configuration: Path, typed: Typed, fill: Fill) -> None:
    async def fill_dead(rows: Rows) -> None:
        event = await rows.event()
        await asyncio.gather(*(rows.delivery(event, "log", DeliveryState.DEAD) for _ in range(STEP + 50)))

    fill(fill_dead)
    output = in_a_terminal(configuration, "retry", "--all")
    assert "100%" in output
    assert f"{STEP + 50} requeued\n" in output
    fill(fill_dead)
    piped = typed("retry", "--all")
    assert (piped.stdout, piped.stderr) == (f"{STEP + 50} requeued\n", "")
