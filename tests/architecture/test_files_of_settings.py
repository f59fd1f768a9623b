"""Every file and folder that a setting names is opened by `--check` and `doctor`."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from shared.config.file_checks import FileCheck
from tests.architecture.test_documentation import CONFIGURED, models_in, settings_of

OPENED_OTHERWISE = {"Target.canary_dir"}
"""A folder that may be mounted later: only a warning of `--check`, by the exporter itself, and an error of `doctor`."""


def find_unchecked(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        types = list(iterate_types((field.annotation, *field.metadata)))
        if any(isinstance(each, FileCheck) for each in types):
            continue
        if Path in types:
            yield f"{model.__name__}.{name}"
        for child in models_in(field.annotation):
            yield from find_unchecked(child)


def iterate_types(types: tuple[object, ...]) -> Iterator[object]:
    for each in types:
        yield each
        if not (isinstance(each, type) and issubclass(each, BaseModel)):
            yield from iterate_types(get_args(each))


@pytest.mark.parametrize("server", CONFIGURED)
def test_every_path_has_a_check(server: str) -> None:
    assert set(find_unchecked(settings_of(server))) - OPENED_OTHERWISE == set()
