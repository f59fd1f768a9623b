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


def plain_rich(text: str = "x") -> dict[str, Any]:
    return {"type": "text", "text": text}


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
        (
            [{"type": "image", "image_url": "https://a.org/x.png", "alt_text": "x" * 2000}],
            [{"type": "image", "image_url": "https://a.org/x.png", "alt_text": "x" * 2001}],
            "/blocks/0/alt_text",
        ),
        (
            [{"type": "image", "slack_file": {"url": "https://a.org/x.png"}, "alt_text": "x"}],
            [{"type": "image", "slack_file": {"url": "u"}, "image_url": "https://a.org/x.png", "alt_text": "x"}],
            "/blocks/0",
        ),
        ([], [{"type": "image", "slack_file": {"id": "F1"}, "alt_text": "x"}], "/blocks/0/slack_file"),
        ([], [{"type": "image", "slack_file": {}, "alt_text": "x"}], "/blocks/0/slack_file"),
        ([], [{"type": "image", "image_url": "https://[", "alt_text": "x"}], "/blocks/0/image_url"),
        ([], [{"type": "image", "alt_text": "x"}], "/blocks/0"),
        ([], [{"type": "context"}], "/blocks/0"),
        ([], [{"type": "rich_text", "elements": [{"type": "rich_text_list"}]}], "/blocks/0/elements/0"),
        (
            [{"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": [plain_rich()]}]}],
            [{"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": [{"type": "emoji"}]}]}],
            "/blocks/0/elements/0/elements/0",
        ),
        (
            [],
            [{"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": [plain_rich("")]}]}],
            "/blocks/0/elements/0/elements/0/text",
        ),
        (
            [],
            [{"type": "divider", "block_id": "a"}, {"type": "divider", "block_id": "a"}],
            "/blocks/1/block_id",
        ),
        ([], actions(button(action_id="a"), button(action_id="a")), "/blocks/0/elements"),
        ([], actions(button(confirm="sure?")), "/blocks/0/elements/0/confirm"),
        (
            actions(button(url="https://a.org/" + "x" * 2986)),
            actions(button(url="https://a.org/" + "x" * 2987)),
            "/blocks/0/elements/0/url",
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
