import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relay.channels.slack.message import escape
from tests.relay.channels.examples import strange


@given(strange, st.integers(1, 300))
def test_escaped_text_keeps_its_limit_and_cuts_no_entity(text: str, limit: int) -> None:
    result = escape(text, limit)
    assert len(result) <= limit
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", result)


@given(st.text(alphabet="<>&|!@#CU0 a", max_size=50))
def test_slack_shows_the_text_as_it_was_written(text: str) -> None:
    assert html.unescape(escape(text, 1_000)) == text


@pytest.mark.parametrize(
    ("limit", "result"), [(14, "a &amp; b &lt;"), (13, "a &amp; b…"), (9, "a &amp; b"[:7] + "…"), (6, "a…")]
)
def test_the_cut_falls_between_characters(limit: int, result: str) -> None:
    assert escape("a & b <", limit) == result
