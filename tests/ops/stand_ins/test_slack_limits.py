"""Each limit from both sides."""

from typing import Any

import pytest

from ops.demo.stand_ins.slack.block_limits import count_text, find_block_errors


def plain(length: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": "x" * length}


def mrkdwn(length: int) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": "x" * length}


def button(**fields: Any) -> dict[str, Any]:
    return {"type": "button", "text": plain(5), **fields}


def actions(*elements: dict[str, Any]) -> list[Any]:
    return [{"type": "actions", "elements": list(elements)}]


@pytest.mark.parametrize(
    ("within", "beyond", "pointer"),
    [
        ([{"type": "divider"}] * 50, [{"type": "divider"}] * 51, "/blocks"),
        ([{"type": "header", "text": plain(150)}], [{"type": "header", "text": plain(151)}], "/blocks/0/text/text"),
        ([{"type": "header", "text": plain(1)}], [{"type": "header", "text": mrkdwn(1)}], "/blocks/0/text"),
        (
            [{"type": "section", "text": mrkdwn(3000)}],
            [{"type": "section", "text": mrkdwn(3001)}],
            "/blocks/0/text/text",
        ),
        ([{"type": "section", "text": mrkdwn(1)}], [{"type": "section", "text": mrkdwn(0)}], "/blocks/0/text/text"),
        ([{"type": "section", "text": mrkdwn(1)}], [{"type": "section"}], "/blocks/0"),
        (
            [{"type": "section", "fields": [mrkdwn(2000)] * 10}],
            [{"type": "section", "fields": [mrkdwn(1)] * 11}],
            "/blocks/0/fields",
        ),
        (
            [{"type": "section", "fields": [mrkdwn(1)]}],
            [{"type": "section", "fields": [mrkdwn(2001)]}],
            "/blocks/0/fields/0/text",
        ),
        ([{"type": "section", "fields": [mrkdwn(1)]}], [{"type": "section", "fields": []}], "/blocks/0/fields"),
        (
            [{"type": "context", "elements": [mrkdwn(1)] * 10}],
            [{"type": "context", "elements": [mrkdwn(1)] * 11}],
            "/blocks/0/elements",
        ),
        (actions(*[button()] * 25), actions(*[button()] * 26), "/blocks/0/elements"),
        (actions(button(text=plain(75))), actions(button(text=plain(76))), "/blocks/0/elements/0/text/text"),
        (actions(button(value="x" * 2000)), actions(button(value="x" * 2001)), "/blocks/0/elements/0/value"),
        (actions(button(action_id="x" * 255)), actions(button(action_id="x" * 256)), "/blocks/0/elements/0/action_id"),
        (actions(button(style="danger")), actions(button(style="loud")), "/blocks/0/elements/0/style"),
        (actions(button(url="https://a.org")), actions(button(url="javascript:alert(1)")), "/blocks/0/elements/0/url"),
        (actions(button()), actions({"type": "checkboxes"}), "/blocks/0/elements/0"),
        (
            [{"type": "divider", "block_id": "x" * 255}],
            [{"type": "divider", "block_id": "x" * 256}],
            "/blocks/0/block_id",
        ),
        (
            [{"type": "image", "image_url": "https://a.org/x.png", "alt_text": "x"}],
            [{"type": "image", "image_url": "https://a.org/x.png"}],
            "/blocks/0",
        ),
        ([], [{"type": "carousel"}], "/blocks/0"),
        ([], ["text"], "/blocks/0"),
    ],
)
def test_what_is_within_a_limit_passes_and_one_more_is_named(
    within: list[Any], beyond: list[Any], pointer: str
) -> None:
    assert list(find_block_errors(within)) == []
    assert [where for _, where in find_block_errors(beyond)] == [pointer]


def test_the_text_of_all_blocks_is_counted_as_one() -> None:
    blocks = [{"type": "section", "text": mrkdwn(10), "fields": [mrkdwn(3)]}, *actions(button())]
    assert count_text(blocks) == 10 + 3 + 5
