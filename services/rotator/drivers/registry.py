"""Every kind of driver: a new one is one file beside this one, and one member of the union."""

from collections.abc import Sequence
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
    settings: DriverSettings,
    kms: ProviderSettings,
    previous_kms: Sequence[ProviderSettings] = (),
    *,
    caller: str = "keypulse-rotator",
) -> AbstractAsyncContextManager[Administration]:
    """The keyring that `settings` lead to, open until the context ends. `caller` is for the service's log.

    Only the drivers `sql` and `table` call `kms` themselves, and only `sql` the keys of `previous_kms`, which unwrap.
    Raises AdministrationError if the keyring cannot be opened; a service that does not answer is found at the first
    call.
    """
    # Each character that is no printable ASCII becomes a question mark.
    name = "".join(c if c.isascii() and c.isprintable() else "?" for c in caller)[:200]
    return settings.open(kms, previous_kms, name)
