"""The evaluator of the tests reads expressions as GitHub does."""

import pytest

from tests.ops.workflows.expression import Contexts, Value, condition, evaluate, interpolate

CONTEXTS: Contexts = {"inputs": {"dry_run": True, "path": "sql", "none": None}, "vars": {"A": "a", "EMPTY": ""}}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("'it''s'", "it's"),
        ("true", True),
        ("null", None),
        ("inputs.path", "sql"),
        ("inputs.absent", None),
        ("inputs.absent || 'both'", "both"),
        ("inputs.path || 'both'", "sql"),
        ("inputs.dry_run && '--dry-run' || ''", "--dry-run"),
        ("inputs.absent && '--dry-run' || ''", ""),
        ("inputs.path == 'SQL'", True),
        ("inputs.path != 'sql'", False),
        ("inputs.absent == ''", True),
        ("inputs.dry_run == 'true'", False),
        ("!inputs.dry_run", False),
        ("!(inputs.path == 'sql') || vars.A == 'a'", True),
        ("false && 'a' || 'b'", "b"),
        ("always()", True),
        ("failure()", False),
    ],
)
def test_an_expression_has_its_value(source: str, value: Value) -> None:
    assert evaluate(source, CONTEXTS) == value


@pytest.mark.parametrize(
    "source", ["github.ref", "inputs", "toJSON(inputs)", "hashFiles()", "1 + 1", "'a", "(true", "true true", "vars.A.*"]
)
def test_what_it_does_not_know_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|not known|not there|expected"):
        evaluate(source, CONTEXTS)


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        (None, "success", True),
        (None, "failure", False),
        ("${{ inputs.dry_run }}", "success", True),
        ("${{ inputs.dry_run }}", "failure", False),
        ("inputs.path == 'sql' || vars.A == 'b'", "failure", False),
        ("${{ always() }}", "failure", True),
        ("${{ failure() && inputs.dry_run }}", "failure", True),
        ("${{ !cancelled() }}", "failure", True),
    ],
)
def test_a_condition_that_names_no_status_means_success(text: str | None, status: str, expected: bool) -> None:
    assert condition(text, CONTEXTS, status) is expected


def test_a_text_with_expressions_in_it() -> None:
    text = "ops/${{ inputs.path }}.yml${{ vars.EMPTY }} ${{ inputs.dry_run }}${{ inputs.none }}"
    assert interpolate(text, CONTEXTS) == "ops/sql.yml true"
