"""The other keyrings that the same KMS key wraps: what each needs, for the commands that count it.

`retire` and `destroy` hold the lease of each meanwhile, so that nobody rotates or rolls back there between count and
end. A keyring that does not answer may need any version.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from services.rotator.drivers.registry import DriverSettings, connect
from services.rotator.lease import holding
from services.rotator.model import RotatorError
from services.rotator.plan import not_finished, unfinished
from services.rotator.report import OtherKeyring
from services.rotator.session import Session
from shared.keyring.administration import Administration, AdministrationError, Lease

T = TypeVar("T")


async def count(session: Session) -> tuple[OtherKeyring, ...]:
    """What each needs, or why it does not say so."""
    return tuple([await _count(session, driver) for driver in session.settings.other_keyrings or ()])


async def _count(session: Session, driver: DriverSettings) -> OtherKeyring:
    try:
        async with connect(driver, session.settings.kms, caller=session.caller) as administration:
            return OtherKeyring(keyring=driver.where, census=await administration.census())
    except AdministrationError as error:
        return OtherKeyring(keyring=driver.where, why=str(error))


async def count_holding(session: Session, work: Callable[[Sequence[OtherKeyring]], Awaitable[T]]) -> T:
    """What `work` returns, which gets the other keyrings and runs while the lease of each is held.

    Raises:
        RotatorError: nobody has said which there are, or one cannot be reached, is being changed, or has a rotation
            that is not finished.
    """
    if session.settings.other_keyrings is None:
        raise RotatorError(
            "which other keyrings this KMS key wraps is not known, and nothing was changed; add `other_keyrings` with "
            "their drivers to the configuration, or `other_keyrings: []` where there are none",
            "census",
        )
    return await _count_holding(session, session.settings.other_keyrings, (), work)


async def _count_holding(
    session: Session,
    drivers: Sequence[DriverSettings],
    counted: tuple[OtherKeyring, ...],
    work: Callable[[Sequence[OtherKeyring]], Awaitable[T]],
) -> T:
    if not drivers:
        return await work(counted)
    answered = False

    async def count_next(_lease: Lease) -> T:
        nonlocal answered
        other = await _counted_at_rest(administration, drivers[0].where)
        answered = True
        return await _count_holding(session, drivers[1:], (*counted, other), work)

    try:
        async with connect(drivers[0], session.settings.kms, caller=session.caller) as administration:
            return await holding(administration, session.settings.lease, count_next, session.caller)
    except AdministrationError as error:
        if answered:  # then it is of another one
            raise
        raise RotatorError(
            f"the other keyring {drivers[0].where} cannot be asked, so it may need any version: {error}; nothing was "
            "changed",
            "census",
        ) from None


async def _counted_at_rest(administration: Administration, where: str) -> OtherKeyring:
    latest = await administration.progress()
    if latest is not None and unfinished(latest):  # a rollback would need the version
        raise RotatorError(f"in the other keyring {where} {not_finished(latest)}; nothing was changed", "census")
    return OtherKeyring(keyring=where, census=await administration.census())
