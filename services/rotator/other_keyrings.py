"""The other keyrings that the same KMS key wraps: what each needs, for the commands that count it.

`retire` and `destroy` hold the lease of each meanwhile, so that nobody rotates or rolls back there between count and
end. A keyring that does not answer may need any version.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from services.rotator.drivers.registry import DriverSettings, open_driver
from services.rotator.lease_renewal import run_with_lease
from services.rotator.model import RotatorError
from services.rotator.plan import describe_unfinished, is_unfinished
from services.rotator.report import OtherKeyringUsage
from services.rotator.session import CommandSession
from shared.keyring.administration import Administration, AdministrationError, KeyUsage, Lease

T = TypeVar("T")


class LeasedKeyring(NamedTuple):
    """A further keyring, while nobody else changes it."""

    name: str
    """Where it is."""
    usage: KeyUsage
    administration: Administration


async def count_usage(session: CommandSession) -> tuple[OtherKeyringUsage, ...]:
    """What each needs, or why it does not say so."""
    return tuple([await _count_keyring_usage(session, driver) for driver in session.settings.other_keyrings or ()])


async def _count_keyring_usage(session: CommandSession, driver: DriverSettings) -> OtherKeyringUsage:
    try:
        async with open_driver(driver, session.settings.kms, caller=session.caller) as administration:
            return OtherKeyringUsage(name=driver.location, census=await administration.count_key_usage())
    except AdministrationError as error:
        return OtherKeyringUsage(name=driver.location, error=str(error))


async def count_with_leases(session: CommandSession, run: Callable[[Sequence[LeasedKeyring]], Awaitable[T]]) -> T:
    """Calls `run` with the other keyrings while it holds the lease of each, and returns its result.

    Raises:
        RotatorError: nobody has said which there are, or one cannot be reached, is being changed, or has a rotation
            that is not finished.
    """
    if session.settings.other_keyrings is None:
        raise RotatorError(
            "which other keyrings this KMS key wraps is not known, and nothing was changed. Add `other_keyrings` with "
            "their drivers to the configuration, or `other_keyrings: []` where there are none",
            "census",
        )
    return await _lease_remaining(session, session.settings.other_keyrings, (), run)


async def _lease_remaining(
    session: CommandSession,
    drivers: Sequence[DriverSettings],
    leased: tuple[LeasedKeyring, ...],
    run: Callable[[Sequence[LeasedKeyring]], Awaitable[T]],
) -> T:
    if not drivers:
        return await run(leased)
    has_run = False

    async def count_next(_lease: Lease) -> T:
        nonlocal has_run
        other = await _count_if_idle(administration, drivers[0].location)
        has_run = True
        return await _lease_remaining(session, drivers[1:], (*leased, other), run)

    try:
        async with open_driver(drivers[0], session.settings.kms, caller=session.caller) as administration:
            return await run_with_lease(administration, session.settings.lease, count_next, session.caller)
    except AdministrationError as error:
        if has_run:  # then it is of another one
            raise
        raise RotatorError(
            f"the other keyring {drivers[0].location} cannot be read, so it may need any version: {error}; nothing "
            "was changed",
            "census",
        ) from None


async def _count_if_idle(administration: Administration, name: str) -> LeasedKeyring:
    latest = await administration.get_progress()
    if latest is not None and is_unfinished(latest):  # a rollback would need the version
        raise RotatorError(f"in the other keyring {name} {describe_unfinished(latest)}; nothing was changed", "census")
    return LeasedKeyring(name, await administration.count_key_usage(), administration)
