"""The checks of the rotator's configuration, for the command `doctor`."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from services.rotator.config import RotatorSettings
from services.rotator.drivers.registry import DriverSettings, open_driver
from services.rotator.verification import find_unwrap_failures
from shared.check import Check, CheckError
from shared.keyring.administration import Administration, AdministrationError, Problem, list_pages
from shared.keyring.external.administration import ExternalAdministration
from shared.keyring.model import LOCAL_KEK
from shared.keyring.wrapping import KeyWrapper
from shared.kms.diagnosis import list_key_checks, list_previous_key_checks
from shared.kms.port import KmsError
from shared.kms.registry import connect_keys, normalise_key_name

_MAX_KEYS: Final = 100
"""Data keys that are counted of a keyring."""
_UNWRAP_HINT: Final = (
    "run verify; where it names every data key, `kms` or `previous_kms` leads to another key of that name: correct its "
    "settings, or restore the key"
)


@asynccontextmanager
async def open_checks(settings: RotatorSettings) -> AsyncIterator[Sequence[Check]]:
    """The KMS key, and each keyring by its driver."""
    previous = settings.previous_kms
    async with connect_keys((settings.kms, *previous)) as keys:
        kms, timeout = keys[settings.kms.key_name], settings.kms_timeout
        unwrapping = {each.key_name: keys[each.key_name] for each in previous}
        wrapping = KeyWrapper(kms, settings.kms.key_name, timeout, previous=unwrapping)
        yield [
            *list_key_checks(
                "kms",
                kms,
                kms.profile.probe_permissions,
                timeout=timeout,
                address=settings.kms.address_setting,
            ),
            *list_previous_key_checks(previous, keys, timeout),
            Check("driver keyring", partial(_check_keyring, settings.driver, settings, wrapping)),
            *(
                Check(f"other_keyrings.{n} keyring", partial(_check_keyring, driver, settings, wrapping))
                for n, driver in enumerate(settings.other_keyrings or ())
            ),
        ]


async def _check_keyring(driver: DriverSettings, settings: RotatorSettings, wrapping: KeyWrapper) -> str:
    kms, previous = settings.kms, settings.previous_kms
    try:
        async with open_driver(driver, kms, previous, caller="keypulse-rotator doctor") as administration:
            counts, failures, is_answered = await _read_keyring(administration, driver), list[Problem](), True
            if driver.has_own_keys:
                pages = list_pages(administration.list_backup_rows)
                try:
                    failures = await find_unwrap_failures(pages, wrapping, has_own_keys=True)
                except KmsError:  # why, the checks of `kms` and `previous_kms` say
                    is_answered = False
    except AdministrationError as error:
        hint = error.hint or f"correct the settings of the driver `{driver.kind}`"
        raise CheckError(error.error, hint) from None
    unnamed = counts.keys() - {LOCAL_KEK, *(each.key_name for each in (kms, *previous))}
    others = sum(counts[kek] for kek in unnamed)
    if unnamed and (driver.has_own_keys or others == counts.total()):
        add = "add it to `previous_kms`, or set the driver to another service" if driver.has_own_keys else ""
        raise CheckError(
            f"data keys are wrapped by {', '.join(sorted(unnamed))}, which neither `kms` nor `previous_kms` names",
            f"set `kms.key` to that key, {add or 'or set the driver to another table'}",
            is_usable=others < counts.total(),
        )
    if failures:
        raise CheckError(f"data key {failures[0].id} cannot be read: {failures[0].error}", _UNWRAP_HINT)
    left = f"; {others} of another KMS key are left as they are" if others else ""
    can = "can be read" if is_answered else "are there; KMS does not tell whether it unwraps them"
    return f"{counts.total() - others} data keys {can}{left}"


async def _read_keyring(administration: Administration, driver: DriverSettings) -> Counter[str]:
    """How many data keys were read, by the KMS keys that wrap them.

    A hundred of a keyring, whose census also counts records. A table of another program has no list before the first
    rotation, and its census is one scan. Of the first rows it is tried whether they can be unwrapped, and changed.
    """
    if driver.has_own_keys:
        return Counter(normalise_key_name(key.kek) for key in await administration.list_keys(limit=_MAX_KEYS))
    usage = await administration.count_key_usage()
    if usage.unreadable:
        raise AdministrationError(
            f"{usage.unreadable} rows of the table cannot be read", "check `driver.encoding` and `driver.aad`"
        )
    if isinstance(administration, ExternalAdministration):
        await administration.check_rows()
    counts = Counter[str]()
    for version in usage.versions:
        counts[version.kek] += version.data_keys
    return counts
