"""The migrations from no tables to those of `schema`, in `versions`, run by Alembic without a configuration file.

Each file there is one revision and names the one before it. Its `upgrade` gets Alembic's operations and works on both
stores, within the transaction of the caller. What a revision says is never changed once it was released: databases
stand on it. So none imports `schema`, which continues changing.
"""

import logging
from pathlib import Path
from typing import Final

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

# A line for each context that it makes helps nobody.
logging.getLogger("alembic").setLevel(logging.WARNING)

SCRIPTS: Final = ScriptDirectory(Path(__file__).parent)


def list_revisions() -> frozenset[str]:
    """Every revision that this program knows."""
    return frozenset(script.revision for script in SCRIPTS.walk_revisions())


def run_migrations(connection: Connection, *, from_revision: str | None) -> None:
    """Migrates from a revision, or from no tables, to the newest, and records that in the database."""
    context = MigrationContext.configure(connection)
    steps = list(SCRIPTS.iterate_revisions("head", from_revision))
    for step in reversed(steps):
        step.module.upgrade(Operations(context))
    context.stamp(SCRIPTS, "head")
