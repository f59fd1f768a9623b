"""On which stores a test runs: on SQLite; and on PostgreSQL too where SQL, locks or isolation are not the same there.

Those are marked `@each_store`, at least one for each module with SQL. With `FAULTS=long` all run on both.
"""

from typing import Final

import pytest

from tests.iterations import LONG

STORES: Final = ("sqlite", "postgresql")
USUAL_STORES: Final = STORES if LONG else STORES[:1]
each_store: Final = pytest.mark.parametrize("database", STORES, indirect=True)
each_empty_database: Final = pytest.mark.parametrize("empty_database", STORES, indirect=True)
