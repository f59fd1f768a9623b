"""Lets all environments of jinja share what they compiled.

A process of the product compiles a template once. A test has a server of its own, and would compile its pages again:
most of what a page's test computes.
"""

from types import CodeType
from typing import Any, Final

import jinja2
from jinja2.bccache import Bucket, BytecodeCache

_TEMPLATES: Final[dict[Any, CodeType]] = {}


class _Memory(BytecodeCache):
    """By template, its text, and what else decides how it is compiled."""

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = _TEMPLATES.get(_build_key(bucket))

    def dump_bytecode(self, bucket: Bucket) -> None:
        assert bucket.code
        _TEMPLATES[_build_key(bucket)] = bucket.code


def _build_key(bucket: Bucket) -> tuple[Any, ...]:
    environment = bucket.environment
    options = environment.autoescape, environment.trim_blocks, environment.lstrip_blocks, environment.undefined
    return bucket.key, bucket.checksum, type(environment), options, *sorted(environment.filters)


def share_compiled_templates() -> None:
    """From now on, in this process."""
    build = jinja2.Environment.__init__

    def build_with_cache(self: jinja2.Environment, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **{"bytecode_cache": _Memory(), **options})

    jinja2.Environment.__init__ = build_with_cache  # type: ignore[method-assign]
