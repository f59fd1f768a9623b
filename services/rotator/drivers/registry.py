"""Every kind of driver: a new one is one file beside this one, and one member of the union."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from pydantic import Field

from services.rotator.drivers.admin_api import AdminApiDriverSettings
from services.rotator.drivers.command import CommandDriverSettings
from services.rotator.drivers.sql import SqlDriverSettings, TableDriverSettings
from shared.config.file_checks import check_files
from shared.keyring.administration import Administration, RefusedError
from shared.kms.settings import ProviderSettings

DriverSettings = Annotated[
    AdminApiDriverSettings | CommandDriverSettings | SqlDriverSettings | TableDriverSettings,
    Field(discriminator="kind"),
]
"""The settings of a driver of any kind; `kind` selects the class."""


@asynccontextmanager
async def open_driver(
    settings: DriverSettings,
    kms: ProviderSettings,
    previous_kms: Sequence[ProviderSettings] = (),
    *,
    caller: str = "keypulse-rotator",
) -> AsyncIterator[Administration]:
    """The keyring that `settings` lead to, open until the context ends. `caller` is for the service's log.

    Only the drivers `sql` and `table` call `kms` themselves, and only `sql` the keys of `previous_kms`, which unwrap.
    Raises AdministrationError if the keyring, or a file that `settings` name, cannot be opened; a service that does
    not answer is found at the first call.
    """
    for problem in await asyncio.to_thread(list, check_files(settings)):
        if problem.startup_policy:
            raise RefusedError(f"{problem.key} {problem.error}", problem.hint)
    # Each character that is no printable ASCII becomes a question mark.
    name = "".join(c if c.isascii() and c.isprintable() else "?" for c in caller)[:200]
    async with settings.open(kms, previous_kms, name) as administration:
        yield administration
