"""Jinja for texts of a team: a sandbox in which no template, and no label, can use much time or memory.

A template may have expressions, `if` and `for`, and the filters and tests that are listed here. It calls nothing, it
sets nothing, and it multiplies nothing, so that a text cannot grow from step to step. Two `for` may stand in each
other. A list gives at most 1,000 items, a text at most 2,000 characters, and every item looks at the clock.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SOURCE: Final = 16 * 1024
"""Characters of a template."""
MAX_VALUE: Final = 2_000
"""Characters of any text in a template."""
_MAX_ITEMS: Final = 1_000
_MAX_DEPTH: Final = 2
"""Loops in each other."""
_MAX_NESTING: Final = 100
"""Expressions in each other: Jinja's time to compile them grows with the third power."""
_FILTERS: Final = (
    "capitalize default d first int items join last length count list lower map reject rejectattr replace reverse "
    "select selectattr sort dictsort string title trim truncate unique upper"
)
_TESTS: Final = "defined undefined in eq equalto == ne != lt < le <= gt > ge >= string number"
_ALLOWED_NODES: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Name, nodes.Const, nodes.Keyword),
    *(
        nodes.Getattr,
        nodes.Getitem,
        nodes.Slice,
        nodes.Filter,
        nodes.Test,
        nodes.CondExpr,
        nodes.Compare,
        nodes.Operand,
    ),
    *(
        nodes.And,
        nodes.Or,
        nodes.Not,
        nodes.Concat,
        nodes.Add,
        nodes.Sub,
        nodes.Neg,
        nodes.Pos,
        nodes.Tuple,
        nodes.List,
    ),
)
_LOOP_FIELDS: Final = {"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0"}
_CHECK_TIME: Final = "check_time"


class TemplateProblem(Exception):  # noqa: N818  # it is reported, and the message goes out without it
    """A template is wrong, or takes too long. The text has its file, the line, and what is wrong there."""


class CompiledTemplate:
    """A template that may be rendered.

    Args:
        source: its text.
        name: of its file, for errors.
        variables: the names that it may use.

    Raises:
        TemplateProblem: it is none.
    """

    def __init__(self, source: str, name: str, variables: frozenset[str]) -> None:
        self._name = name
        if len(source) > MAX_SOURCE:
            raise TemplateProblem(f"{name}: expected at most {MAX_SOURCE} characters")
        try:
            tree = _ENVIRONMENT.parse(source, name, name)
            _check_nodes(tree, variables)
            self._template = _ENVIRONMENT.template_class.from_code(
                _ENVIRONMENT, _ENVIRONMENT.compile(tree, name, name), _ENVIRONMENT.make_globals(None)
            )
        except TemplateSyntaxError as error:
            raise TemplateProblem(f"{name}: line {error.lineno}: {error.message}") from None
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # 5,000 digits, 200 brackets
            raise TemplateProblem(f"{name}: cannot be read: {type(error).__name__}") from None

    def render(self, values: Mapping[str, Any], limit: int, check_time: Callable[[], None]) -> str:
        """The text, cut off after `limit` characters.

        Args:
            values: of the variables.
            limit: how long it may be.
            check_time: called often; what it raises ends the rendering.

        Raises:
            TemplateProblem: an expression cannot be computed.
        """
        text = ""
        try:
            for piece in self._template.generate({**values, _CHECK_TIME: check_time}):
                check_time()
                text += piece
                if len(text) >= limit:
                    break
        except TemplateProblem as problem:
            raise TemplateProblem(f"{self._name}: {problem}") from None
        except Exception as error:  # noqa: BLE001  # whatever an expression raises
            # Of other errors than Jinja's only the type: their text may be that of an alert.
            what = str(error.message) if isinstance(error, TemplateError) else type(error).__name__
            raise TemplateProblem(f"{self._name}: line {self._find_line(error)}: {what}") from None
        return text[:limit]

    def _find_line(self, error: BaseException) -> int:
        line, frame = 1, error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == self._name:
                line = frame.tb_lineno
            frame = frame.tb_next
        return line


class _Environment(ImmutableSandboxedEnvironment):
    """Attributes are the fields of a variable, or the keys of a mapping; a key that is missing is an empty text."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping):
            return obj.get(attribute, "")
        is_field = is_dataclass(obj) and attribute in {field.name for field in fields(obj)}
        if is_field or (isinstance(obj, LoopContext) and attribute in _LOOP_FIELDS):
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)  # whose text names it

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, str) and (isinstance(obj, Mapping) or is_dataclass(obj)):
            return self.getattr(obj, argument)
        if isinstance(obj, (str, list, tuple)) and isinstance(argument, (int, slice)):
            try:
                return obj[argument]
            except (LookupError, ValueError):
                return ""
        return self.undefined(obj=obj, name="in brackets")  # not the key, which may be an alert's


def _check_nodes(tree: nodes.Template, variables: frozenset[str]) -> None:
    """Raises TemplateSyntaxError for what a template may not do; and makes each loop look at the clock."""

    def check(node: nodes.Node, loop_names: frozenset[str], depth: int, nesting: int = 0) -> None:
        if nesting > _MAX_NESTING:
            raise TemplateSyntaxError(f"expected at most {_MAX_NESTING} expressions in each other", node.lineno)
        if not isinstance(node, _ALLOWED_NODES):
            what = "a call" if isinstance(node, nodes.Call) else f"`{type(node).__name__.lower()}`"
            raise TemplateSyntaxError(f"{what} is not allowed; expected expressions, if and for", node.lineno)
        if isinstance(node, nodes.Name) and node.ctx == "load" and node.name not in variables | loop_names:
            raise TemplateSyntaxError(f"there is no variable `{node.name}`", node.lineno)
        if isinstance(node, nodes.For):
            if node.recursive or depth == _MAX_DEPTH:
                raise TemplateSyntaxError(f"expected at most {_MAX_DEPTH} loops in each other", node.lineno)
            check(node.iter, loop_names, depth, nesting + 1)
            targets = frozenset(
                name.name for name in [node.target, *node.target.find_all(nodes.Name)] if isinstance(name, nodes.Name)
            )
            inner = loop_names | targets | {"loop"}
            for child in (*([node.test] if node.test else ()), *node.body, *node.else_):
                check(child, inner, depth + 1, nesting + 1)
            node.iter = nodes.Filter(node.iter, _CHECK_TIME, [], [], None, None, lineno=node.lineno)
            return
        for child in node.iter_child_nodes():
            check(child, loop_names, depth, nesting + 1)

    check(tree, frozenset(), 0)


class _TimedList(list[Any]):
    """The items of a loop; each looks at the clock."""

    def __init__(self, items: Iterator[Any], check_time: Callable[[], None]) -> None:
        super().__init__(items)
        self._check_time = check_time

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self._check_time()
            yield item


@pass_context
def _limit_loop(context: Context, value: Any) -> _TimedList:
    return _TimedList(islice(iter(value), _MAX_ITEMS), context[_CHECK_TIME])


def _limit(value: Any) -> Any:
    return value[:MAX_VALUE] if isinstance(value, str) else value


def _limit_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, whose texts and result are cut."""

    @functools.wraps(function)  # with what tells Jinja about its first argument
    def limited(*arguments: Any, **options: Any) -> Any:
        return _limit(function(*map(_limit, arguments), **{key: _limit(value) for key, value in options.items()}))

    return limited


_ENVIRONMENT: Final = _Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.globals.clear()
_ENVIRONMENT.filters = {name: _limit_filter(_ENVIRONMENT.filters[name]) for name in _FILTERS.split()}
_ENVIRONMENT.filters[_CHECK_TIME] = _limit_loop
_ENVIRONMENT.tests = {name: _ENVIRONMENT.tests[name] for name in _TESTS.split()}
