"""The checks of the rotator's configuration, for the command `doctor`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from services.rotator.config import RotatorSettings
from services.rotator.drivers.registry import DriverSettings, open_driver
from shared.check import Check, CheckError
from shared.keyring.administration import AdministrationError
from shared.kms.diagnosis import list_key_checks
from shared.kms.registry import connect_key
from shared.kms.settings import ProviderSettings


@asynccontextmanager
async def open_checks(settings: RotatorSettings) -> AsyncIterator[Sequence[Check]]:
    """The KMS key, and each keyring by its driver."""
    kms = connect_key(settings.kms)
    try:
        yield [
            *list_key_checks("kms", kms, kms.profile.probe_permissions, timeout=settings.kms_timeout),
            Check("driver keyring", partial(_check_keyring, settings.driver, settings.kms)),
            *(
                Check(f"other_keyrings.{n} keyring", partial(_check_keyring, driver, settings.kms))
                for n, driver in enumerate(settings.other_keyrings or ())
            ),
        ]
    finally:
        await kms.close()


async def _check_keyring(driver: DriverSettings, kms: ProviderSettings) -> str:
    """By the calls that read, and only them."""
    try:
        async with open_driver(driver, kms, caller="keypulse-rotator doctor") as administration:
            usage = await administration.count_key_usage()
    except AdministrationError as error:
        what, _, hint = str(error).rpartition("; ")
        raise CheckError(
            what or hint, hint if what else f"correct the settings of the driver `{driver.kind}`"
        ) from None
    # A driver without the service tells the key of our configuration; only the rows know better.
    wrapping = {version.kek for version in usage.versions} | {usage.kek}
    if usage.kek != kms.key or (usage.versions and kms.key not in {version.kek for version in usage.versions}):
        others = ", ".join(sorted(each for each in wrapping - {kms.key} if each)) or "a KMS key that it does not tell"
        raise CheckError(
            f"its data keys are wrapped by {others}", "set `kms.key` to that key, or the driver to another service"
        )
    return f"{sum(each.data_keys for each in usage.versions)} data keys"
