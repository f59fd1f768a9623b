"""What Slack sends, and what only looks like it."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.relay.acknowledgement.presses import Action, parse_press
from shared.http.untrusted_json import UntrustedJsonError

PAYLOAD: dict[str, Any] = {
    "type": "block_actions",
    "user": {"id": "U0000000011", "username": "anna\n<!channel>", "team_id": "T0000000001"},
    "team": {"id": "T0000000001", "domain": "acme"},
    "container": {"type": "message", "message_ts": "1700000000.000001", "channel_id": "C0000000001"},
    "actions": [{"action_id": "acknowledge", "value": "an-incident/2", "action_ts": "1700000009.000001"}],
}
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*PAYLOAD, "id", "action_id"]), inner),
    max_leaves=6,
)


def parse(**changes: Any) -> Any:
    return parse_press(json.dumps(PAYLOAD | changes).encode())


def test_a_press_has_one_id_however_often_it_arrives_and_another_one_of_each_other_press() -> None:
    press = parse()
    assert (press.action, press.incident_id, press.episode) == (Action.ACKNOWLEDGE, "an-incident", 2)
    assert press.user_id == "U0000000011"
    assert (press.channel, press.ts, press.team, press.user_team) == (
        *("C0000000001", "1700000000.000001"),
        *("T0000000001", "T0000000001"),
    )
    assert press.who == "anna <!channel>"  # on one line; whoever shows it escapes it
    assert parse(trigger_id="another", message={"text": "edited since"}).id == press.id
    (action,) = PAYLOAD["actions"]
    others = [
        parse(actions=[action | {"action_ts": "1700000009.000002"}]),
        parse(actions=[action | {"action_id": "silence"}]),
        parse(user=PAYLOAD["user"] | {"id": "U0000000012"}),
        parse(container=PAYLOAD["container"] | {"channel_id": "C0000000002"}),
    ]
    assert len({press.id, *(other.id for other in others)}) == 5


def test_all_else_is_no_press() -> None:
    link = [{"action_id": "runbook"}]
    others: list[dict[str, Any]] = [{"type": "view_submission"}, {"user": None}, {"container": None}]
    nameless = [{"action_id": "acknowledge", "value": value} for value in ("", "an-incident", "an-incident/0", "/2")]
    others += [{"actions": each} for each in ([], link, *([each] for each in nameless))]
    assert [changes for changes in others if parse(**changes) is not None] == []


@given(st.dictionaries(st.sampled_from([*PAYLOAD]), _VALUES))
def test_whatever_comes_is_a_press_or_none_or_one_error(changes: dict[str, Any]) -> None:
    try:
        press = parse(**changes)
    except UntrustedJsonError:
        return
    assert press is None or press.action in set(Action)
