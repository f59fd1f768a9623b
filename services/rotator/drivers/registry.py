"""Every kind of driver: a new one is one file beside this one, and one member of the union."""

from contextlib import AbstractAsyncContextManager
from typing import Annotated

from pydantic import Field

from services.rotator.drivers.admin_api import AdminApiDriverSettings
from services.rotator.drivers.command import CommandDriverSettings
from services.rotator.drivers.sql import SqlDriverSettings, TableDriverSettings
from shared.keyring.administration import Administration
from shared.kms.settings import ProviderSettings

DriverSettings = Annotated[
    AdminApiDriverSettings | CommandDriverSettings | SqlDriverSettings | TableDriverSettings,
    Field(discriminator="kind"),
]
"""The settings of a driver of any kind; `kind` selects the class."""


def open_driver(
    settings: DriverSettings, kms: ProviderSettings, *, caller: str = "keypulse-rotator"
) -> AbstractAsyncContextManager[Administration]:
    """The keyring that `settings` lead to, open until the context ends.

    Args:
        settings: of the driver.
        kms: the key that wraps the data keys; only the drivers `sql` and `table` call it themselves.
        caller: for the service's log; each character that is not printable ASCII becomes a question mark.

    Raises:
        AdministrationError: it cannot be opened at all. A service that does not answer is found at the first call.
    """
    return settings.open(kms, "".join(c if c.isascii() and c.isprintable() else "?" for c in caller)[:200])
