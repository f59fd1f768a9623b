"""Every query of the relay gives what its row says: as many columns, of these names and types, null or not."""

from typing import Any

import pytest

from services import relay
from services.relay.deliveries import queries as deliveries
from services.relay.deliveries.queries import DeliveryFilter, Position
from services.relay.outbox import tables
from shared.sql.rows import RowQuery
from tests.row_columns import compare_query, find_queries, import_modules, list_queries

_EXAMINED = tables.deliveries.select().subquery()
BUILT = {
    # Those that a function builds, by the function.
    deliveries._build_search: deliveries._build_search(DeliveryFilter(), _EXAMINED, Position(), 1),
    deliveries._build_end: deliveries._build_end(_EXAMINED),
}
QUERIES = list_queries(import_modules(relay)) | {
    query: name for function, built in BUILT.items() for query, name in find_queries(built, function.__qualname__)
}


@pytest.mark.parametrize("query", QUERIES, ids=QUERIES.values())
def test_each_field_is_of_its_column(query: RowQuery[Any]) -> None:
    compare_query(query)
