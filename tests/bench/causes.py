"""Which cause the exporter names for each failure of a corpus; see tests/exporter/cause_corpus.py.

The table has no seconds: the machine changes none of it.
"""

import tempfile
from pathlib import Path

import click

from tests.exporter.cause_corpus import format_table, run_corpus


async def causes() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        click.echo(format_table(await run_corpus(Path(folder))))
