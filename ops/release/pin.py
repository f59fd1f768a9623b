"""`python -m ops.release.pin`: asks the registries which image each tag is now, and writes its digest beside the tag.

Digests are of the index, which has an image for each processor. To be run after a tag was changed by hand, and before
a release; then look at the difference, and commit it.
"""

import re
import subprocess
from pathlib import Path

import click

from ops.release.images import FILES, REFERENCE, references

_SECONDS = 60


@click.command()
def main() -> None:
    """Write the digest of each image that the repository takes from others beside its tag. Needs docker buildx."""
    root = Path()
    digests = {tagged: _digest(tagged) for tagged in dict.fromkeys(each.tagged for each in references(root))}
    for name in FILES:
        file = root / name
        text = file.read_text(encoding="utf-8")
        file.write_text(REFERENCE.sub(lambda found: f"{found['tagged']}@{digests[found['tagged']]}", text), "utf-8")
    for tagged, digest in digests.items():
        click.echo(f"{tagged}@{digest}")


def _digest(tagged: str) -> str:
    command = ["docker", "buildx", "imagetools", "inspect", tagged, "--format", "{{.Manifest.Digest}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603  names from our own files
    except (OSError, subprocess.TimeoutExpired) as error:
        raise click.ClickException(f"docker buildx cannot be asked: {error}") from None
    if done.returncode or not re.fullmatch(r"sha256:[0-9a-f]{64}", done.stdout.strip()):
        raise click.ClickException(f"{tagged}: no digest was found: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
