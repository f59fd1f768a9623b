"""A log line has one field for each meaning: `error` what is wrong, `reason` one of a closed set, `hint` what to do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("services", "shared", "ops")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "bind"}
SYNONYMS = {
    "error": "cause causes complaint detail details doubt err errors exception explanation failure failures "
    "finding findings message mistake mistakes msg problem problems sentence text trouble warning what why",
    "reason": "category code_name error_code error_kind error_type failure_reason kind_of_error reason_code",
    "hint": "action_needed advice do next next_step remedy solution suggestion to_do todo",
}
"""The field → names that people give to the same meaning."""
FIELD_OF = {name: field for field, names in SYNONYMS.items() for name in names.split()}


def find_wrong_fields(source: str) -> Iterator[str]:
    """Each field of a log call or a `bind` that has another name than the same meaning has elsewhere."""
    for call in ast.walk(ast.parse(source)):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS):
            continue
        for field in call.keywords:
            if field.arg in FIELD_OF:
                yield f"{call.lineno}: {field.arg} is {FIELD_OF[field.arg]}"
            if field.arg == "reason" and not is_member(field.value):
                yield f"{call.lineno}: reason is a member of a closed set; a text is error"


def is_member(value: ast.expr) -> bool:
    """Whether it is the reason of something, or the value of an enumeration: `error.reason`, `reason.value`."""
    if isinstance(value, ast.IfExp):
        return is_member(value.body) and (isinstance(value.orelse, ast.Constant) or is_member(value.orelse))
    return isinstance(value, ast.Attribute) and value.attr in {"reason", "value"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_log_call_names_error_reason_and_hint_as_all_others_do(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{found}"
        for file in files
        for found in find_wrong_fields(file.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "call",
    [
        'log.warning("pruning stopped", why=str(error))',
        'log.error("reload failed", problem=problem)',
        'self._log.info("x", detail="y")',
        "log.bind(problems=problems)",
        'log.warning("x", todo="restart")',
        'log.warning("x", reason=str(error))',
        'log.warning("x", reason="the disk is full")',
        'log.warning("x", reason=f"KMS: {error.reason}")',
    ],
)
def test_another_name_or_a_free_text_as_the_reason_is_found(call: str) -> None:
    assert len(list(find_wrong_fields(call))) == 1


@pytest.mark.parametrize(
    "call",
    [
        'log.warning("attempt failed", reason=error.reason, error=str(error), hint="see the log")',
        'log.warning("refused", reason=reason.value)',
        'log.info("attempt", reason=failure.reason if failure else None)',
    ],
)
def test_the_common_names_are_accepted(call: str) -> None:
    assert list(find_wrong_fields(call)) == []
