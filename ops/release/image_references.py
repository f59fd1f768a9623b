"""Which images of others the repository names, and which of them by a tag alone: that may be another one tomorrow."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILES_WITH_IMAGES: Final = ("ops/docker/Dockerfile", "compose.yaml", ".env.example", ".github/workflows/release.yml")
REFERENCE_PATTERN: Final = re.compile(
    r"(?P<tagged>docker\.io/[a-z0-9][a-z0-9._/-]*:[A-Za-z0-9_][A-Za-z0-9._-]*)(?P<digest>@sha256:[0-9a-f]{64}(?![0-9a-f]))?"
)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image that a file names."""

    file: str
    name_with_tag: str
    """Its name with its tag, such as `docker.io/library/python:3.13-slim-trixie`."""
    digest: str | None
    """`sha256:…`."""


def find_references(root: Path) -> Iterator[ImageReference]:
    """All of them, in the order in which they stand there."""
    for file in FILES_WITH_IMAGES:
        for found in REFERENCE_PATTERN.finditer((root / file).read_text(encoding="utf-8")):
            yield ImageReference(file, found["tagged"], found["digest"] and found["digest"].removeprefix("@"))
