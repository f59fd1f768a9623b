"""Whatever is done to a keyring, in whatever order, and wherever it is cut off: no data key is ever lost.

A model of what was done stands beside a real database; between any two commits the runner may die, and another one, or
another hand, may come.
"""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from shared.keyring.administration import AdministrationError, RotationState, StoredKey
from shared.keyring.model import DataKeyStatus, WrappedKey, compute_fingerprint
from shared.kms.port import KmsError
from shared.sql.database_url import create_sqlite_url
from tests.iterations import LONG
from tests.shared.keyring.fake_kms import FakeKms
from tests.shared.keyring.keyring import KEY, NEW_DEK, OTHER_KEY, REWRAP, Keyring, opened, secret_of

FOREIGN = WrappedKey(b"?", OTHER_KEY, "1")


class Dead(BaseException):
    """A runner was killed."""


class Scenario:
    """A keyring of four data keys, one of them foreign, and what may happen to it."""

    def __init__(self, keyring: Keyring, kms: FakeKms) -> None:
        self.keyring = keyring
        self.kms = kms
        self.number = 0
        self.backup: list[StoredKey] = []
        self.steps: dict[str, Callable[[], Awaitable[object]]] = {
            "rewrap": lambda: self._rotate(REWRAP, 2),
            "rewrap whole": lambda: keyring.rotate(REWRAP, self._id()),
            "new dek": lambda: self._rotate(NEW_DEK, 2),
            "roll back": lambda: keyring.rollback(self._id()),
            "one step back": lambda: keyring.administration.rollback(self._id(), keyring.token),
            "next rotation": self._next,
            "new version": self._new_version,
            "disable the first": self._disable,
            "enable all": self._enable,
            "other hand": self._interleave,
            "back up": self._back_up,
            "restore": lambda: keyring.administration.restore(self.backup, keyring.token),
            "lose the lease": self._lose_the_lease,
            "retire": lambda: keyring.administration.retire_version(str(max(1, self.kms.primary - 1)), keyring.token),
        }

    def _id(self) -> str:
        return f"r{self.number}"

    async def _rotate(self, type_: object, batch: int) -> None:
        request = self.keyring.request().model_copy(
            update={"type": type_, "rotation_id": self._id(), "batch_size": batch}
        )
        await self.keyring.administration.rotate(request)

    async def _next(self) -> None:
        self.number += 1

    async def _new_version(self) -> None:
        self.kms.primary += 1

    async def _disable(self) -> None:
        if self.kms.primary > 1:
            self.kms.disabled.add(1)

    async def _enable(self) -> None:
        self.kms.disabled.clear()

    async def _interleave(self) -> None:
        key = await self.keyring.key("k001")
        await self.keyring.replace(key, await self.keyring.wrapping.wrap(key.id, secret_of(key.id)))

    async def _back_up(self) -> None:
        self.backup = list(await self.keyring.administration.list_backup_rows())

    async def _lose_the_lease(self) -> None:
        await self.keyring.administration.release_lease(self.keyring.token)

    async def check_invariants(self) -> None:
        """What must be true at any moment."""
        self.kms.calls_to_failure, disabled, self.kms.disabled = None, self.kms.disabled, set()
        keys = await self.keyring.keys()
        for name, key in keys.items():
            if name == "foreign":
                assert key.wrapped == FOREIGN
            else:
                secret = await self.keyring.wrapping.unwrap(key)
                assert compute_fingerprint(secret) == key.fingerprint
            if name.startswith("k"):
                assert key.fingerprint == compute_fingerprint(secret_of(name))
        assert {"k000", "k001", "k002", "foreign"} <= {*keys}
        assert [key.status for key in keys.values()].count(DataKeyStatus.ACTIVE) == 1
        self.kms.disabled = disabled


@settings(max_examples=60 if LONG else 25)
@given(data=st.data())
def test_after_any_steps_and_deaths_every_data_key_unwraps_and_is_the_same(data: st.DataObject) -> None:
    async def scenario(folder: Path) -> None:
        kms = FakeKms()
        async with opened(create_sqlite_url(folder / "keyring.db"), kms) as keyring:
            await keyring.fill(3)
            await keyring.add("foreign", FOREIGN)
            playing = Scenario(keyring, kms)
            for _ in range(data.draw(st.integers(1, 12), "steps")):
                if not keyring.token or data.draw(st.booleans(), "takes the lease"):
                    keyring.token = (await keyring.administration.acquire_lease("the test", 600, keyring.token)).token
                step = data.draw(st.sampled_from(sorted(playing.steps)), "step")
                deadly = data.draw(st.none() | st.integers(1, 4), "commits until it dies")
                kms.calls_to_failure = data.draw(st.none() | st.integers(0, 12), "calls until KMS is out")
                await _until_it_dies(playing, step, deadly)
                await playing.check_invariants()
            await _to_the_end(playing)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


async def _until_it_dies(playing: Scenario, step: str, commits: int | None) -> None:
    change = playing.keyring.database.write_exclusively

    async def deadly(work: Callable[[Connection], object]) -> object:
        nonlocal commits
        done = await change(work)
        if commits is not None:
            commits -= 1
            if commits <= 0:
                raise Dead
        return done

    playing.keyring.database.write_exclusively = deadly  # type: ignore[method-assign,assignment]
    try:
        await playing.steps[step]()
    except (AdministrationError, KmsError, Dead):
        pass
    finally:
        playing.keyring.database.write_exclusively = change  # type: ignore[method-assign]


async def _to_the_end(playing: Scenario) -> None:
    """The next runner finishes what was left, and another rotation leaves nothing by an older version."""
    keyring, kms = playing.keyring, playing.kms
    kms.calls_to_failure = None
    kms.disabled.clear()
    kms.primary += 1
    keyring.token = (await keyring.administration.acquire_lease("the test", 600, keyring.token)).token
    left = await keyring.administration.get_progress()
    if left and left.state is RotationState.RUNNING:
        ended = await keyring.rollback(left.rotation_id)
        assert ended.state is RotationState.ROLLED_BACK
    done = await keyring.rotate(REWRAP, "last")
    assert done.state is RotationState.DONE
    assert {each.wrapped.kek_version for each in (await keyring.keys()).values() if each.wrapped.kek == KEY} == {
        str(kms.primary)
    }
    await playing.check_invariants()
