"""`/proof`: how far each channel is proven, what the last proof took, and thirty days; also at `/api/proofs`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request

from services.relay.config import RelaySettings
from services.relay.console.frame import Console
from services.relay.outbox.store import Store
from services.relay.proofs.queries import encode_proofs, read_last_proofs, read_proofs, read_standings
from shared.http.json_api import PageQuery, parse_query


class ProofPages:
    """The page of the proofs, and the same as JSON."""

    def __init__(self, store: Store, settings: RelaySettings) -> None:
        self._store = store
        self._names = [name for name in settings.channels if name in settings.proven_channels]
        self._every = settings.proof.every

    def add_routes(self, console: Console) -> None:
        console.page("/proof", self._show, "proof.html.j2", title="Proof", shared_fragment="proof_state")
        console.api("/proofs", self._list, encode=self._encode)

    async def _list(self, request: Request) -> dict[str, Any]:
        query = parse_query(PageQuery, request.query_params)
        return {
            **await self._read_state(),
            "page": await self._store.read(partial(read_proofs, limit=query.limit, before=query.cursor)),
        }

    async def _show(self, _request: Request) -> dict[str, Any]:
        newest = await self._store.read(read_last_proofs)
        return {**await self._read_state(), "every": self._every, "newest": newest}

    async def _read_state(self) -> dict[str, Any]:
        now = self._store.clock()
        read = partial(read_standings, names=self._names, now=now, every=self._every)
        return {"at": now, "standings": await self._store.read(read)}

    def _encode(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return encode_proofs(found["standings"], found["page"], found["at"], self._every)
