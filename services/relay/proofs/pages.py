"""`/proof`: how far each channel is proven, what the last proof took, and thirty days; also at `/api/proofs`."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection
from starlette.requests import Request

from services.relay.config import RelaySettings
from services.relay.console.frame import Console, SharedRead
from services.relay.outbox.store import Store
from services.relay.proofs.matrix import DAY, DAYS, Shape, Stretch, choose_cell, draw, find_runs, list_stretches
from services.relay.proofs.queries import (
    STEPS,
    Coverage,
    encode_proofs,
    format_coverage,
    format_hop,
    measure_coverage,
    read_histories,
    read_last_proofs,
    read_proofs,
    read_standings,
)
from shared.http.json_api import PageQuery, parse_query

_MONTH: Final = "proof_month"
_MONTH_SECONDS: Final = 30.0
"""For which one read of the thirty days serves all viewers."""
MAX_STRETCHES: Final = 20
"""Of each channel, those that are listed."""


class ChannelMonth(NamedTuple):
    """Thirty days of a channel."""

    coverage: Coverage
    shapes: Sequence[Shape]
    stretches: Sequence[Stretch]


class Month(NamedTuple):
    """Thirty days of all channels."""

    today: int
    """Days since the epoch."""
    cell_seconds: int
    channels: Sequence[ChannelMonth]


def read_month(connection: Connection, names: Sequence[str], now: float, every: float) -> Month:
    """Today and the 29 days before it, in UTC; for `Store.read`."""
    cell_seconds, today = choose_cell(every), int(now // DAY)
    since, channels = float((today - DAYS + 1) * DAY), []
    for history in read_histories(connection, names, since, every):
        first = bisect_left(history.proofs, since, key=itemgetter(0))
        runs = find_runs(history.proofs[first:], cell_seconds)
        coverage = measure_coverage(history, since, now, every)
        channels.append(ChannelMonth(coverage, draw(runs, cell_seconds, today), list_stretches(runs, cell_seconds)))
    return Month(today, cell_seconds, channels)


class ProofPages:
    """The page of the proofs, and the same as JSON."""

    def __init__(self, store: Store, settings: RelaySettings) -> None:
        self._store = store
        self._every = settings.proof.every
        channels = {name: own for name, own in settings.channels.items() if name in settings.proven_channels}
        self._names = [*channels]
        self._limits = {name: own.describe_proof_limit(settings.proof) for name, own in channels.items()}
        self._month = SharedRead(self._read_month, _MONTH_SECONDS)

    def add_routes(self, console: Console) -> None:
        console.page("/proof", self._show, "proof.html.j2", title="Proof", shared_fragment="proof_state")
        console.api("/proofs", self._list, encode=self._encode)

    async def _list(self, request: Request) -> dict[str, Any]:
        query = parse_query(PageQuery, request.query_params)
        page = await self._store.read(partial(read_proofs, limit=query.limit, before=query.cursor))
        return {**await self._read_state(), "page": page}

    async def _show(self, request: Request) -> dict[str, Any]:
        target = request.headers.get("hx-target")  # to show nothing of the others, it need not be read
        values: dict[str, Any] = {
            "every": self._every,
            "limits": self._limits,
            "steps": STEPS,
            "format_coverage": format_coverage,
            "format_hop": format_hop,
            "MAX_STRETCHES": MAX_STRETCHES,
        }
        if self._every and target != _MONTH:
            values |= {**await self._read_state(), "newest": await self._store.read(read_last_proofs)}
        if self._every and target != "proof_state":
            values["month"] = await self._month.get()
        return values

    async def _read_state(self) -> dict[str, Any]:
        now = self._store.clock()
        read = partial(read_standings, names=self._names, now=now, every=self._every)
        return {"at": now, "standings": await self._store.read(read)}

    async def _read_month(self) -> Month:
        read = partial(read_month, names=self._names, now=self._store.clock(), every=self._every)
        return await self._store.read(read)

    def _encode(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return encode_proofs(found["standings"], found["page"], found["at"], self._every)
