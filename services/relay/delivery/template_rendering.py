"""Renders a team's templates in a separate process: `python -m services.relay.delivery.template_rendering`.

Jinja's own sandbox bounds what a template reaches, and neither time nor memory: one operation, such as `"x" * 10**9`,
may take all of both. So the kernel does that for this process: memory by RLIMIT_AS, and the processor's time of one
template by a timer that ends the process wherever it is. A `Request` comes and an `Answer` goes as JSON.
"""

import functools
import json
import re
import signal
import traceback
from collections.abc import Mapping
from typing import Any, Final, TypedDict

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.relay.delivery.child_process import serve

SECONDS: Final = 0.5
"""Of the processor, for one template and one message."""
MEMORY_BYTES: Final = 192 * 1024**2
_FILES: Final = (nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)
_MAPPING_METHODS: Final = {"get", "items", "keys", "values"}
_MISSING: Final = re.compile(r"'[\w ]+' has no attribute '(\w+)'")


class Request(TypedDict):
    name: str
    """Of the template's file, for errors."""
    source: str
    limit: int
    """Characters of a text."""
    variables: Mapping[str, Any]
    about: list[Any]
    """What `alert` is; a text is rendered for each."""


class Answer(TypedDict):
    texts: list[str]
    """One for each of `about`, cut off at the limit; none where there is a problem."""
    problem: str
    """What is wrong, with the file and the line; empty if nothing is."""
    is_out_of_memory: bool


class Labels(dict[str, str]):
    """Labels or annotations: one that is missing is an empty text, and each wins over a method of the same name."""


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Labels) and (attribute in obj or attribute not in _MAPPING_METHODS):
            return obj.get(attribute, "")
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return obj.get(argument, "") if isinstance(obj, Labels) else super().getitem(obj, argument)


class _NoTextError(Exception):
    """The value of an expression has no text."""


def _check_text(value: object) -> object:
    """An expression's value. Of other kinds the text would be an address in memory, another one at each attempt."""
    if value is None or isinstance(value, (str, int, float, dict, list, tuple, Undefined)):
        return value
    raise _NoTextError(f"this gives a {type(value).__name__}, and no text; perhaps `|join(', ')` is missing")


_ENVIRONMENT: Final = _Environment(
    undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, finalize=_check_text
)
# Each attempt sends the same text.
del _ENVIRONMENT.globals["lipsum"], _ENVIRONMENT.filters["random"]


def render(request: Request) -> Answer:
    """The texts of a template, or what is wrong with it."""
    try:
        template = _compile(request["source"], request["name"], frozenset(request["variables"]) | {"alert"})
        texts = [_render_one(template, {**request["variables"], "alert": each}, request) for each in request["about"]]
    except MemoryError:
        problem = f"{request['name']}: needs more than {MEMORY_BYTES // 1024**2} MiB of memory"
        return Answer(texts=[], problem=problem, is_out_of_memory=True)
    except TemplateSyntaxError as error:
        problem = f"{request['name']}: line {error.lineno}: {error.message}"
    except Exception as error:  # noqa: BLE001  # whatever an expression raises
        problem = f"{request['name']}: line {_find_line(error, request['name'])}: {_describe(error, request['source'])}"
    else:
        return Answer(texts=texts, problem="", is_out_of_memory=False)
    return Answer(texts=[], problem=problem, is_out_of_memory=False)


def _render_one(template: Template, values: Mapping[str, Any], request: Request) -> str:
    text = ""
    for piece in template.generate(values):
        text += piece
        if len(text) >= request["limit"]:  # what is cut off is not computed
            break
    return text[: request["limit"]]


@functools.lru_cache(maxsize=16)
def _compile(source: str, name: str, variables: frozenset[str]) -> Template:
    """The template. Raises TemplateSyntaxError, also for what Jinja finds only where it is rendered."""
    tree = _ENVIRONMENT.parse(source, name, name)
    for node in tree.find_all(_FILES):
        name_of = type(node).__name__.lower()
        raise TemplateSyntaxError(f"`{name_of}` is not allowed; there are no other files", node.lineno)
    for kind, available in ((nodes.Filter, _ENVIRONMENT.filters), (nodes.Test, _ENVIRONMENT.tests)):
        for used in tree.find_all(kind):
            if used.name not in available:
                raise TemplateSyntaxError(f"there is no {kind.__name__.lower()} `{used.name}`", used.lineno)
    unknown = meta.find_undeclared_variables(tree) - variables - _ENVIRONMENT.globals.keys()
    for variable in tree.find_all(nodes.Name):
        if variable.name in unknown and variable.ctx == "load":
            raise TemplateSyntaxError(f"there is no variable `{variable.name}`", variable.lineno)
    code = _ENVIRONMENT.compile(tree, name, name)
    return _ENVIRONMENT.template_class.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))


def _describe(error: Exception, source: str) -> str:
    """A sentence where the template alone is in it; else the type: its text may be that of an alert."""
    if isinstance(error, _NoTextError):
        return str(error)
    found = _MISSING.fullmatch(str(error)) if isinstance(error, UndefinedError) else None
    return str(error) if found and found[1] in re.findall(r"\w+", source) else type(error).__name__


def _find_line(error: BaseException, name: str) -> int:
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == name]
    return lines[-1] if lines else 1


def _mark_labels(value: dict[str, Any]) -> dict[str, Any]:
    return {
        key: Labels(child) if isinstance(child, dict) and key.endswith(("labels", "annotations")) else child
        for key, child in value.items()
    }


def _answer(line: bytes) -> bytes:
    request = json.loads(line.decode(errors="surrogatepass"), object_hook=_mark_labels)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
    try:
        return json.dumps(render(request)).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    serve(_answer, MEMORY_BYTES)
