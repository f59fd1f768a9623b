import json
from dataclasses import replace

from hypothesis import given
from hypothesis import settings as hypothesis_settings

from services.relay.channels.log import build_line
from services.relay.model import Message
from tests.iterations import LONG
from tests.relay.channels.examples import change, messages


@given(messages())
@hypothesis_settings(max_examples=200 if LONG else 50)
def test_no_line_is_cut_by_whoever_collects_it(any_message: Message) -> None:
    remark = "Ours. " * 100
    fields = build_line(change(any_message, remark=remark, event=replace(any_message.event, remark="")))
    assert len(json.dumps(fields)) < 16_000
    assert len(fields["alerts"]) + fields.get("unlisted_count", 0) == (
        len(any_message.event.alerts) + any_message.event.truncated_alerts
    )
