"""A message is sent with what there is for it; each part is counted, and delays no channel that does not show it."""

import asyncio
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest

from services.relay.channels.port import Progress
from services.relay.delivery.attempt import SenderSettings, open_local_sender
from services.relay.delivery.charts import Charts, Picture
from services.relay.delivery.enrichment import EnrichmentSettings
from services.relay.delivery.message import LinkRules
from services.relay.model import DeliveryTask, MessagePart, PartOutcome, encode_event, find_alertname
from tests.relay.delivery.worker_harness import rig
from tests.relay.served_relay import Scripted, ScriptedSettings, event_of

RUNBOOK = f"# {find_alertname(event_of())}\n\nLook at it."


class LimitedSettings(ScriptedSettings):
    shows_chart: ClassVar[bool] = True


class WithValues(ScriptedSettings):
    shows_values: ClassVar[bool] = True


async def save(_progress: Progress) -> None:
    return


def task_of(channel: str, **changes: Any) -> DeliveryTask:
    ends = asyncio.get_running_loop().time() + 9
    task = DeliveryTask("id", "incident", 1, channel, datetime.now(UTC), event_json=encode_event(event_of()))
    return task._replace(attempt_ends=ends, lease_ends=ends + 1, **changes)


async def test_a_message_gets_what_its_channel_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[float] = []

    async def make(_charts: Charts, _message: object, max_seconds: float) -> Picture:
        queries.append(max_seconds)
        return Picture(PartOutcome.ADDED, {"a": "1.84"}, b"png")

    async def read_values(_charts: Charts, _message: object, _max_seconds: float) -> dict[str, str]:
        return {"a": "1.84"}

    monkeypatch.setattr(Charts, "make", make)
    monkeypatch.setattr(Charts, "read_values", read_values)
    (tmp_path / "runbook.md").write_text(RUNBOOK)
    limited, plain, valued = Scripted(), Scripted(), Scripted()
    settings = SenderSettings(
        {
            "shown": LimitedSettings(channel=limited),
            "plain": ScriptedSettings(channel=plain),
            "valued": WithValues(channel=valued),
        },
        LinkRules(None, None),
        {},
        10,
        ZoneInfo("Europe/Berlin"),
        EnrichmentSettings(tmp_path / "runbook.md", "http://127.0.0.1:1"),
    )
    assert pickle.loads(pickle.dumps(settings.enrichment)) == settings.enrichment  # noqa: S301  # it crosses to a process
    async with open_local_sender(settings) as send:
        first = await send(task_of("shown"), save)
        second = await send(task_of("plain"), save)
        await send(task_of("valued"), save)
        edit = await send(task_of("shown", is_edit=True), save)
        await send(task_of("plain", event_json=encode_event(event_of("resolved"))), save)
    (message,), (other, resolved) = limited.sent, plain.sent
    assert resolved.excerpt is None
    assert str(message.zone) == "Europe/Berlin"
    assert (message.chart, message.current_values) == (b"png", {"a": "1.84"})
    assert (other.chart, other.current_values) == (None, {})
    assert [(each.chart, each.current_values) for each in valued.sent] == [(None, {"a": "1.84"})]
    for each in message, other:
        assert each.excerpt is not None
        assert each.excerpt.blocks[0].text == "Look at it."
    runbook = {MessagePart.RUNBOOK: PartOutcome.ADDED}
    assert first.enrichment == {**runbook, MessagePart.CHART: PartOutcome.ADDED}
    assert second.enrichment == edit.enrichment == runbook
    assert len(queries) == 1
    assert 2 < queries[0] <= 3  # a third of the attempt


async def test_each_part_is_counted(tmp_path: Path) -> None:
    (tmp_path / "runbook.md").write_text(RUNBOOK)
    async with rig(tmp_path, enrichment=EnrichmentSettings(tmp_path / "runbook.md"), a=Scripted()) as it:
        await it.accept_events("firing")
        await it.finished()
        assert it.value("relay_message_parts_total", part="runbook", outcome="added") == 1
        assert it.value("relay_message_parts_total", part="chart", outcome="late") == 0
