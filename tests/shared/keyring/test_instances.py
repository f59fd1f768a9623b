"""A new data key becomes active only once every instance that is alive holds it."""

import pytest

from shared.keyring import instances
from shared.keyring.administration import RefusedError, RotationState
from shared.keyring.instances import InstanceHeartbeat
from shared.keyring.model import DataKeyStatus
from shared.keyring.tables import instances as table
from tests.shared.keyring.keyring import NEW_DEK, Keyring


@pytest.fixture
async def begun(keyring: Keyring) -> Keyring:
    """A rotation whose new data key is pending."""
    await keyring.fill(1)
    await keyring.administration.rotate(keyring.request(NEW_DEK))
    return keyring


async def _pending(keyring: Keyring) -> str:
    return next(name for name, status in (await keyring.statuses()).items() if status is DataKeyStatus.PENDING)


async def test_with_no_instance_alive_it_waits_for_none(begun: Keyring) -> None:
    assert (await begun.administration.rotate(begun.request(NEW_DEK))).state is RotationState.DONE


async def test_one_that_never_gets_it_is_named_and_nothing_is_promoted_until_it_is_gone(
    begun: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_MAX_WAIT_SECONDS", 0.3)
    stuck = InstanceHeartbeat(begun.database, "web-7", 60.0)
    await stuck.send([], {})
    with pytest.raises(RefusedError, match=r"web-7 of the service's instances cannot use .* or stop it, then resume"):
        await begun.administration.rotate(begun.request(NEW_DEK))
    assert (await begun.statuses())["k000"] is DataKeyStatus.ACTIVE
    await stuck.remove()
    assert (await begun.administration.rotate(begun.request(NEW_DEK))).state is RotationState.DONE


@pytest.mark.parametrize("seconds", [-181, 181], ids=["of one that was killed", "of a clock that was ahead"])
async def test_a_row_that_is_not_of_the_last_three_intervals_keeps_nobody_waiting(begun: Keyring, seconds: int) -> None:
    await InstanceHeartbeat(begun.database, "gone", 60.0).send([], {})
    moved = table.update().values(last_seen_at=table.c.last_seen_at + seconds)
    await begun.database.write_exclusively(lambda connection: connection.execute(moved))
    assert (await begun.administration.rotate(begun.request(NEW_DEK))).state is RotationState.DONE


async def test_one_that_is_checked_at_long_intervals_is_waited_for_between_them(
    begun: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_MAX_WAIT_SECONDS", 0.3)
    await InstanceHeartbeat(begun.database, "slow", 60.0).send([], {})
    moved = table.update().values(last_seen_at=table.c.last_seen_at - 170)
    await begun.database.write_exclusively(lambda connection: connection.execute(moved))
    with pytest.raises(RefusedError, match="slow of the service's instances"):
        await begun.administration.rotate(begun.request(NEW_DEK))


async def test_an_instance_has_one_row_and_those_of_another_day_are_removed(keyring: Keyring) -> None:
    one, other = (InstanceHeartbeat(keyring.database, name, 60.0) for name in ("one", "other"))
    await other.send([], {})
    moved = table.update().values(last_seen_at=table.c.last_seen_at - 90_000)
    await keyring.database.write_exclusively(lambda connection: connection.execute(moved))
    await one.send([], {})
    await one.send(["a", "b"], {})
    rows = await keyring.database.read(lambda connection: connection.execute(table.select()).all())
    assert [(row.id, row.interval, row.unwrapped_keys) for row in rows] == [("one", 60.0, "a b")]
