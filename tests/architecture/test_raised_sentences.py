"""What an error says is for people: no module cuts it into parts, or searches it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {
    str(file.relative_to(REPOSITORY)): file
    for package in ("services", "shared", "ops")
    for file in sorted((REPOSITORY / package).rglob("*.py"))
}
PARSE_A_LIBRARY_S = {"shared/config/settings.py": "pydantic-settings'", "shared/http/untrusted_json.py": "msgspec's"}
"""Its error has no field with what is needed."""
_CUTS = {"partition", "rpartition", "split", "rsplit", "startswith", "endswith", "removeprefix", "removesuffix"}


def test_no_module_parses_the_sentence_of_an_error() -> None:
    trees = {name: ast.parse(file.read_text()) for name, file in FILES.items() if name not in PARSE_A_LIBRARY_S}
    parsed = [f"{name}:{node.lineno}" for name, tree in trees.items() for node in _iterate_parsing(tree)]
    assert parsed == [], "give the error a field instead, such as `hint`"


@pytest.mark.parametrize(
    "cut",
    [
        "str(error).partition(': ')",
        "'no such' in str(error)",
        "problem.message.rpartition('; ')",
        "text.split('; ', 1)",
    ],
)
def test_each_way_to_parse_a_sentence_is_found(cut: str) -> None:
    assert list(_iterate_parsing(ast.parse(f"try:\n    pass\nexcept ValueError as error:\n    {cut}\n")))


def _iterate_parsing(tree: ast.Module) -> Iterator[ast.expr]:
    """Where text is cut between cause and hint, and where that of a caught exception is cut or searched."""
    sentences = {f"str({each.name})" for each in ast.walk(tree) if isinstance(each, ast.ExceptHandler)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and sentences.intersection(map(ast.unparse, node.comparators)):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CUTS:
            separators = [ast.unparse(each) for each in node.args[:1]]
            if separators == ["'; '"] or (separators and ast.unparse(node.func.value) in sentences):
                yield node
