"""The routing trees of the configured Alertmanagers, read from their API once a minute at most. Nothing changes there.

Of a configuration only routes and the kinds of receivers are kept; Alertmanager itself masks secrets and URLs.
"""

import asyncio
from typing import Final, NamedTuple

from services.relay.alertmanager_api import AlertmanagerClient, AlertmanagerError
from services.relay.alertmanager_file.routing_tree import RoutingTree, TreeError, parse_tree
from services.relay.config import AlertmanagerSettings
from services.relay.shared_read import SharedRead
from shared.config.secret_file import SecretFile
from shared.process.concurrency import run_large

_MAX_AGE: Final = 60.0


class AlertmanagerTree(NamedTuple):
    """The tree of one Alertmanager, or of several with the same."""

    urls: tuple[str, ...]
    tree: RoutingTree | None
    error: str | None
    """Why it cannot be shown; None where it can."""


class AlertmanagerTrees:
    """Reads the trees.

    Args:
        settings: of Alertmanager; without URLs there are no trees.
    """

    def __init__(self, settings: AlertmanagerSettings) -> None:
        self._settings = settings
        self._shared = SharedRead(self._read_all, _MAX_AGE)

    @property
    def is_configured(self) -> bool:
        """Whether there is an Alertmanager to ask."""
        return bool(self._settings.urls)

    async def read(self) -> tuple[AlertmanagerTree, ...]:
        """Every different tree, and each Alertmanager whose tree cannot be shown."""
        return await self._shared.get()

    async def _read_all(self) -> tuple[AlertmanagerTree, ...]:
        read = await asyncio.gather(*map(self._read_one, self._settings.urls))
        merged: list[AlertmanagerTree] = []
        for each in read:
            same = next((n for n, other in enumerate(merged) if each.tree and other.tree == each.tree), None)
            if same is None:
                merged.append(each)
            else:
                merged[same] = merged[same]._replace(urls=merged[same].urls + each.urls)
        return tuple(merged)

    async def _read_one(self, url: str) -> AlertmanagerTree:
        settings = self._settings
        token = SecretFile(settings.token_file) if settings.token_file else None
        client = AlertmanagerClient(url, token, settings)
        try:
            configuration = await client.read_configuration()
            return AlertmanagerTree((url,), await run_large(lambda: parse_tree(configuration)), None)
        except (AlertmanagerError, TreeError) as error:
            return AlertmanagerTree((url,), None, str(error))
        finally:
            await client.close()
