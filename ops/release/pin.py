"""`python -m ops.release.pin`: resolves each image tag to its digest, and writes that beside the tag.

Digests are those of the index, which has an image for each platform. Run it after you change a tag, and before a
release; then review and commit the difference.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

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


_LOOKUP_TIMEOUT = 60


@click.command()
def main() -> None:
    """Write the digest of each third-party image beside its tag. Needs docker buildx."""
    root = Path()
    digests = {
        tagged: _look_up_digest(tagged)
        for tagged in dict.fromkeys(each.name_with_tag for each in find_references(root))
    }
    for name in FILES_WITH_IMAGES:
        file = root / name
        text = file.read_text(encoding="utf-8")
        file.write_text(
            REFERENCE_PATTERN.sub(lambda found: f"{found['tagged']}@{digests[found['tagged']]}", text), "utf-8"
        )
    for tagged, digest in digests.items():
        click.echo(f"{tagged}@{digest}")


def _look_up_digest(name_with_tag: str) -> str:
    command = ["docker", "buildx", "imagetools", "inspect", name_with_tag, "--format", "{{.Manifest.Digest}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOOKUP_TIMEOUT, check=False)  # noqa: S603  names from our own files
    except (OSError, subprocess.TimeoutExpired) as error:
        raise click.ClickException(f"docker buildx cannot be asked: {error}") from None
    if done.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", done.stdout.strip()):
        raise click.ClickException(f"{name_with_tag}: no digest was found: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
