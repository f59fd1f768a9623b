"""What an error says is for people: its sentences are short, and no module cuts them into parts, or searches them."""

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PARSE_A_LIBRARY_S = {"shared/config/settings.py": "pydantic-settings'", "shared/http/untrusted_json.py": "msgspec's"}
"""Its error has no field with what is needed."""
_CUTS = {"partition", "rpartition", "split", "rsplit", "startswith", "endswith", "removeprefix", "removesuffix"}
FIELDS = ("error", "hint", "strerror")
"""Of an error, with a sentence or two."""
MAX_WORDS = 25
ERROR = re.compile(r"(?<![.`])\b_?[A-Z]\w*Error\b")
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z`])")


@cache
def parse_all() -> dict[str, ast.Module]:
    """Each module of the product, by its path."""
    files = (file for package in ("services", "shared", "ops") for file in (REPOSITORY / package).rglob("*.py"))
    return {str(file.relative_to(REPOSITORY)): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(files)}


def test_no_module_parses_the_sentence_of_an_error() -> None:
    trees = {name: tree for name, tree in parse_all().items() if name not in PARSE_A_LIBRARY_S}
    parsed = [f"{name}:{node.lineno}" for name, tree in trees.items() for node in _iterate_parsing(tree)]
    assert parsed == [], "give the error a field instead, such as `hint`"


def _iterate_parsing(tree: ast.Module) -> Iterator[ast.expr]:
    """Where text is cut between cause and hint, and where that of a caught exception is cut or searched."""
    names = {each.name for each in ast.walk(tree) if isinstance(each, ast.ExceptHandler) and each.name}
    sentences = {text for name in names for text in (f"str({name})", *(f"{name}.{field}" for field in FIELDS))}
    for node in ast.walk(tree):
        if (isinstance(node, ast.Compare) and sentences.intersection(map(_read_name, node.comparators))) or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _CUTS
            and node.args
            and (_read_text(node.args[0]) == "; " or _read_name(node.func.value) in sentences)
        ):
            yield node


def _read_name(node: ast.expr) -> str:
    """The text of what may name an error or a field of it."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute | ast.Call) else ""


def test_no_sentence_of_an_error_is_longer_than_the_limit() -> None:
    found = [
        f"{name}:{line}: {sentence}"
        for name, tree in parse_all().items()
        for line, sentence in _iterate_long_sentences(tree)
    ]
    assert found == [], "make two sentences of it, with the next step apart"


def _iterate_long_sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Sentences with more than `MAX_WORDS` in what is raised, or returned to be raised; a variable counts as one."""
    for node in ast.walk(tree):
        error = node.exc if isinstance(node, ast.Raise) else node.value if isinstance(node, ast.Return) else None
        if isinstance(error, ast.Call) and (isinstance(node, ast.Raise) or ast.unparse(error.func).endswith("Error")):
            for argument in (*error.args, *(keyword.value for keyword in error.keywords)):
                for sentence in _SENTENCE_END.split(_read_text(argument)):
                    if len(sentence.split()) > MAX_WORDS:
                        yield error.lineno, sentence


def _read_text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr():
            return "".join(map(_read_text, node.values))
        case ast.BinOp(op=ast.Add()):
            return _read_text(node.left) + _read_text(node.right)
        case ast.IfExp():
            return max(_read_text(node.body), _read_text(node.orelse), key=lambda text: len(text.split()))
    return "…"


def test_every_error_that_a_docstring_names_exists() -> None:
    names, docstrings = set(dir(builtins)), []
    for file, tree in parse_all().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Name, ast.Attribute, ast.alias, ast.ClassDef)):
                names |= {str(getattr(node, key)) for key in ("id", "attr", "name") if hasattr(node, key)}
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docstrings.append((f"{file}:{node.lineno}", str(node.value.value)))
    assert len(docstrings) > 1000
    unknown = [(at, name) for at, text in docstrings for name in ERROR.findall(text) if name not in names]
    assert unknown == []
