"""What is inserted stands where it belongs, and no byte of what was there changes."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.relay.routes.merge import UneditableError, insert_items, split_items

ITEM = "# about x\n- name: x\n  with: [1]\n"
X = {"name": "x", "with": [1]}


@pytest.mark.parametrize(
    ("text", "index", "expected"),
    [
        ("r:\n- a\n- b\n", 0, "r:\n# about x\n- name: x\n  with: [1]\n- a\n- b\n"),
        (
            "r:\n  - a\n  # about b\n  - b\n",
            1,
            "r:\n  - a\n  # about x\n  - name: x\n    with: [1]\n  # about b\n  - b\n",
        ),
        (
            "r:\n  - a:\n    # of a\n  - b\n",
            1,
            "r:\n  - a:\n    # of a\n  # about x\n  - name: x\n    with: [1]\n  - b\n",
        ),
        ("r:\n  - a\n\n# next\ns: 1\n", None, "r:\n  - a\n  # about x\n  - name: x\n    with: [1]\n\n# next\ns: 1\n"),
        ("r:\n  - a:\n\n    # of a\n", None, "r:\n  - a:\n\n    # of a\n  # about x\n  - name: x\n    with: [1]\n"),
        ("r:\n  - a", None, "r:\n  - a\n  # about x\n  - name: x\n    with: [1]\n"),
        ("r:\r\n  - a\r\n", None, "r:\r\n  - a\r\n  # about x\r\n  - name: x\r\n    with: [1]\r\n"),
        (
            "r:\n  - |\n    # text\n\n  - b\n",
            1,
            "r:\n  - |\n    # text\n\n  # about x\n  - name: x\n    with: [1]\n  - b\n",
        ),
        ("r:\n- |\n  text\ns: 1\n", None, "r:\n- |\n  text\n# about x\n- name: x\n  with: [1]\ns: 1\n"),
        ("r:\n- |+\n  text\n\n", None, "r:\n- |+\n  text\n\n# about x\n- name: x\n  with: [1]\n"),
        ("r: [a, b]  # c\n", 1, 'r: [a, {"name": "x", "with": [1]}, b]  # c\n'),
        ("r: [a, ]\n", None, 'r: [a, {"name": "x", "with": [1]}, ]\n'),
        ("r: &all []\n", None, 'r: &all [{"name": "x", "with": [1]}]\n'),
        ("s: 1\n", None, "s: 1\n\nr:\n  # about x\n  - name: x\n    with: [1]\n"),
        ("s: 1\n...\n", None, "s: 1\n\nr:\n  # about x\n  - name: x\n    with: [1]\n...\n"),
        ("s: |+\n  text\n", None, "s: |+\n  text\nr:\n  # about x\n  - name: x\n    with: [1]\n"),
        ("{s: 1}\n", None, '{s: 1, "r": [{"name": "x", "with": [1]}]}\n'),
        ("\ufeff'r':\n- a\n", None, "\ufeff'r':\n- a\n# about x\n- name: x\n  with: [1]\n"),
        ("\ufeffr: [a, b]\n", 1, '\ufeffr: [a, {"name": "x", "with": [1]}, b]\n'),
        ("\ufeffs: 1\n", None, "\ufeffs: 1\n\nr:\n  # about x\n  - name: x\n    with: [1]\n"),
        (
            "s: &a\n  k: 1\nr:\n  - *a\n  - b\n",
            1,
            "s: &a\n  k: 1\nr:\n  - *a\n  # about x\n  - name: x\n    with: [1]\n  - b\n",
        ),
    ],
)
def test_an_item_is_inserted(text: str, index: int | None, expected: str) -> None:
    assert insert_items(text, ("r",), index, [ITEM]) == expected
    there = yaml.safe_load(text).get("r") or []
    at = len(there) if index is None else index
    assert yaml.safe_load(expected)["r"] == [*there[:at], X, *there[at:]]


@pytest.mark.parametrize("text", ["a:\n  k: 1\n", "b: 2\na: {k: 1}\n", "a:\n    k: 1\n    # of a\nb: 2\n"])
def test_a_list_is_added_to_a_mapping_inside(text: str) -> None:
    result = yaml.safe_load(insert_items(text, ("a", "r"), None, [ITEM, "- y\n"]))
    assert result["a"] == {"k": 1, "r": [X, "y"]}


@pytest.mark.parametrize("text", ["r: null\n", "r:\n", "r: text\n", "s: &s [a]\nr: *s\n"])
def test_what_is_no_list_of_its_own_is_refused(text: str) -> None:
    with pytest.raises(UneditableError, match="r is no list of its own"):
        insert_items(text, ("r",), None, [ITEM])


@pytest.mark.parametrize("text", ["s: &s {r: [a]}\na: *s\n", "a: 1\n"])
def test_a_mapping_that_stands_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(UneditableError, match="a is no mapping of its own"):
        insert_items(text, ("a", "r"), None, [ITEM])


def test_items_are_cut_out_with_their_comments() -> None:
    text = "r:\n  # about a\n  - a: 1\n    # of a\n  - b\n# the end\n"
    assert split_items(text, ("r",)) == ["# about a\n- a: 1\n  # of a\n", "- b\n"]


LEAVES = st.text(alphabet="ab #:-'\"\n|>[]{},&*é", max_size=8) | st.integers() | st.none() | st.booleans()
VALUES = st.recursive(
    LEAVES,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from("abc"), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), st.data(), st.sampled_from([None, False, True]))
def test_whatever_stands_in_a_list_stays_as_it_was(
    values: list[object], data: st.DataObject, flow: bool | None
) -> None:
    text = yaml.safe_dump({"before": values[0], "r": values, "then": 1}, default_flow_style=flow, allow_unicode=True)
    index = data.draw(st.integers(0, len(values)))
    result = insert_items(text, ("r",), index if index < len(values) else None, [ITEM])
    assert yaml.safe_load(result)["r"] == [*values[:index], X, *values[index:]]
    remaining = iter(result)
    assert all(character in remaining for character in text), "it is there, in its order"
