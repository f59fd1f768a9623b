"""The checks of the backend's configuration, for the command `doctor`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from services.backend.config import BackendSettings
from shared.check import Check
from shared.keyring.database import check_keyring_database
from shared.kms.diagnosis import list_key_checks, list_previous_key_checks
from shared.kms.registry import connect_keys


@asynccontextmanager
async def open_checks(settings: BackendSettings) -> AsyncIterator[Sequence[Check]]:
    """The database and the KMS keys. Encrypt and Decrypt are all that the service does with the key."""
    kms, previous, timeout = settings.kms, settings.previous_kms, settings.kms_timeout
    async with connect_keys((kms, *previous)) as keys:
        yield [
            Check("database tables", partial(check_keyring_database, settings.database), "database"),
            *list_key_checks("kms", keys[kms.key_name], (), timeout=timeout, address=kms.address_setting),
            *list_previous_key_checks(previous, keys, timeout),
        ]
