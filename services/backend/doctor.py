"""The checks of the backend's configuration, for the command `doctor`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from services.backend.config import BackendSettings
from shared.check import Check
from shared.keyring.database import check_keyring_database
from shared.kms.diagnosis import list_key_checks
from shared.kms.registry import connect_key


@asynccontextmanager
async def open_checks(settings: BackendSettings) -> AsyncIterator[Sequence[Check]]:
    """The database and the KMS key. Encrypt and Decrypt are all that the service does with the key."""
    kms = connect_key(settings.kms)
    try:
        yield [
            Check("database tables", partial(check_keyring_database, settings.database)),
            *list_key_checks("kms", kms, (), timeout=settings.kms_timeout, address=settings.kms.address_setting),
        ]
    finally:
        await kms.close()
