"""Names use the words of the field (docs/architecture.md has a glossary), and none that a newcomer has to guess."""

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("services", "shared", "ops")

TERMS = {
    "accepts, refuses or opens": "gate",
    "the caller, the client, the peer": "stranger strangers asker",
    "circuit breaker, rate limit": "paced pacer stride",
    "configuration error, warning": "mistake mistakes doubt doubts trouble complaint complaints misfit",
    "connectivity, phases": "way",
    "dead letter, requeue": "again",
    "delivered, reported, published": "tell tells telling told teller news",
    "expired, due": "overdue beat beats",
    "failing, degraded, healthy": "well odd",
    "fix": "mend mends mended",
    "batch, several": "together many pieces",
    "hint": "todo",
    "hot reload": "generation generations",
    "journal entry": "note notes noted",
    "key inspection, read": "look looks looked looking",
    "lease": "held holds holding turn turns hand handed",
    "message, text, template": "word words wording say says said saying talk",
    "outside systems by their name": "outside here apart abroad",
    "probe, round trip": "tried trying",
    "a verb in the present": "made makes making kept keeps seen saw shown taken took takes asked asks written gone",
    "expected, required, existing": "known needed",
    "retire, destroy": "wish wishes wished",
    "request and answer; the code, as OAuth has it": "exchange exchanges exchanged",
    "timeout, delay": "patience patient impatient",
    "start, begin": "launch launches launched",
    "need, require; new, due, pending": "demand demands demanded planned",
    "space, capacity, limit": "room rooms house floor floors",
    "task": "carrier carry carries carried",
    "encrypted": "sealed seal",
    "path, location, key": "place places",
}
"""What the field says → words that stood for it."""
TERM_OF = {synonym: term for term, synonyms in TERMS.items() for synonym in synonyms.split()}
SENTENCE = {"again", "known", "many", "said", "say", "says", "tried", *TERMS["a verb in the present"].split()}
"""Plain English in a sentence, as the name of a test is one. In any other name they stand for a term."""
BARE = {"changes", "known", "many", "record", "recorded", "rejected", "shown", "waiting"}
"""Words that name no module by themselves: of what? In a name they are the field's, as in `waiting_count`."""
ESTABLISHED = (
    "exchange_code",  # as OAuth calls it
    "connection_made",  # asyncio.Protocol calls it
    "last_seen",  # of the metric relay_watchdog_last_seen_timestamp_seconds
    "max_words",  # of a sentence, counted
    "look_up",  # what one does with a name or a digest
    "odd_word",  # what this test finds
    "needed_versions",  # the versions that a backup needs
    "release_notes",
    "render_notes",  # Helm's NOTES.txt
    "sealed",  # a column of the backend's records
    "too_many",  # as in HTTP's 429
)
"""Phrases of the field that hold such a word."""


ERROR = re.compile(r"(?<![.`])\b_?[A-Z]\w*Error\b")


def split(name: str) -> str:
    """`TooManyRowsError` and `too_many_rows` alike as `too_many_rows`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().strip("_")


@cache
def find_odd_words(name: str) -> frozenset[str]:
    name = split(name)
    for phrase in ESTABLISHED:
        name = name.replace(phrase, "")
    found = frozenset(name.split("_")) & TERM_OF.keys()
    return found - SENTENCE if name.startswith("test_") else found


def iterate_names(source: str) -> Iterator[tuple[int, str]]:
    """Each class, function, parameter, variable and attribute with its line."""
    tree = ast.parse(source)
    yield from iterate_interface(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs) and node.name:
            yield node.lineno, node.name


def iterate_interface(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each class, function, parameter and alias of an import with its line."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def find_names(source: str) -> list[str]:
    return [f"{line}: {name}" for line, name in iterate_names(source) if find_odd_words(name)]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_or_name_in_it_has_an_odd_word(package: str) -> None:
    wrong: list[str] = []
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    for file in files:
        name = str(file.relative_to(REPOSITORY))
        wrong += [f"{name}: say {TERM_OF[found]}, not {found}" for found in sorted(find_odd_words(file.stem))]
        wrong += [f"{name}: say what is {file.stem}"] if file.stem in BARE else []
        wrong += [f"{name}:{found}" for found in find_names(file.read_text(encoding="utf-8"))]
    assert wrong == []


def test_no_module_of_the_tests_or_name_in_it_has_an_odd_word() -> None:
    files = sorted((REPOSITORY / "tests").rglob("*.py"))
    assert files
    assert [str(file.relative_to(REPOSITORY)) for file in files if find_odd_words(file.stem)] == []
    wrong = [
        f"{file.relative_to(REPOSITORY)}:{found}"
        for file in files
        for found in find_names(file.read_text(encoding="utf-8"))
    ]
    assert wrong == []


def test_every_error_that_a_docstring_names_exists() -> None:
    names, docstrings = set(dir(builtins)), []
    for file in (file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Name, ast.Attribute, ast.alias, ast.ClassDef)):
                names |= {str(getattr(node, key)) for key in ("id", "attr", "name") if hasattr(node, key)}
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docstrings.append((f"{file.relative_to(REPOSITORY)}:{node.lineno}", str(node.value.value)))
    assert len(docstrings) > 1000
    unknown = [(at, name) for at, text in docstrings for name in ERROR.findall(text) if name not in names]
    assert unknown == []


@pytest.mark.parametrize(
    "source",
    [
        "class ToldRow: ...",
        "def tell(): ...",
        "async def _held_for(): ...",
        "def f(overdue): ...",
        "def f(*, needed_keys=()): ...",
        "f = lambda word: word",
        "class KeptRows: ...",
        "class HTTPGate: ...",
        "told = 1",
        "_PATIENCE = 1.0",
        "class PlannedEvent: ...",
        "async def _exchange(): ...",
        "self.kept = 1",
        "for seen in []: ...",
        "def test_a_closed_gate_is_shown(): ...",
        "def test_it_ends(shown): ...",
        "from errors import RefusedError as AskedError",
        "import errors as mistakes",
    ],
)
def test_an_odd_word_is_found_wherever_it_stands(source: str) -> None:
    assert len(find_names(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "class TooManyRowsError: ...",
        "def connection_made(): ...",
        "def keyword(): ...",
        "def test_a_delivery_is_shown_again(): ...",
    ],
)
def test_a_phrase_of_the_field_is_no_odd_word(source: str) -> None:
    assert find_names(source) == []
