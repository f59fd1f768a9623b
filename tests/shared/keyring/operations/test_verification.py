"""A verification finds every data key and record that cannot be read, and looks at all of them in its full mode."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from services.backend import records as backend
from services.backend.aes_gcm import UnwrappedKey
from services.backend.records import RECORDS_TABLE, Records
from shared.keyring import verification
from shared.keyring.model import WrappedKey
from shared.keyring.tables import data_keys
from shared.kms.gcp.client import GcpKmsKey
from tests.key_versions import Versions
from tests.shared.keyring.keyring import OTHER_KEY, Keyring, opened, secret_of


@pytest.fixture
async def keyring(url: URL, kms: GcpKmsKey) -> AsyncIterator[Keyring]:
    """Two data keys, with five records and one."""
    async with opened(url, kms, records=RECORDS_TABLE) as keyring:
        await keyring.database.write_exclusively(backend.TABLES.create_all)
        await keyring.take_lease()
        await keyring.fill(2)
        for number in range(5):
            await _put(keyring, f"r{number}", "k000")
        await _put(keyring, "r5", "k001")
        yield keyring


async def _put(keyring: Keyring, record: str, key: str, secret: bytes | None = None) -> None:
    assert await Records(keyring.database).put(record, record.encode(), UnwrappedKey(key, secret or secret_of(key)))


async def _orphan(keyring: Keyring) -> None:
    """A record whose data key another hand removed."""
    await keyring.add("gone")
    await _put(keyring, "orphan", "gone")
    removed = data_keys.delete().where(data_keys.c.id == "gone")
    await keyring.database.write_exclusively(lambda connection: connection.execute(removed))


async def test_where_all_is_healthy_nothing_is_named_and_the_fingerprint_outlives_a_rotation(
    keyring: Keyring, versions: Versions
) -> None:
    before = await keyring.administration.verify("full")
    assert (before.data_keys, before.records, before.problems) == (2, 6, ())
    await versions.rotate()
    await keyring.rotate()
    assert await keyring.administration.verify("full") == before
    assert before.fingerprint == await keyring.fingerprint()


async def test_a_sample_checks_some_records_of_every_data_key(keyring: Keyring) -> None:
    assert (await keyring.administration.verify("sample")).records == 4


async def test_the_full_mode_goes_through_many_pages_of_records(keyring: Keyring) -> None:
    for number in range(6, 60):
        await _put(keyring, f"r{number}", "k000")
    assert (await keyring.administration.verify("full")).records == 60


async def test_what_cannot_be_read_is_named(keyring: Keyring) -> None:
    await _put(keyring, "broken", "k001", b"another data key's 32 bytes     ")
    await _orphan(keyring)
    await keyring.add("foreign", WrappedKey(b"?", OTHER_KEY, "1"))
    broken = data_keys.update().where(data_keys.c.id == "k000").values(wrapped=b"?")
    await keyring.database.write_exclusively(lambda connection: connection.execute(broken))
    found = await keyring.administration.verify("full")
    assert (found.data_keys, found.records) == (3, 2)
    assert {problem.id: (problem.is_foreign, problem.error) for problem in found.problems} == {
        "k000": (False, "KMS: invalid_request (version 1)"),
        "broken": (False, "this record cannot be opened: it is not what was stored under this id"),
        "gone": (False, "1 records need it, and it is not in the keyring"),
        "foreign": (
            True,
            f"it is wrapped by {OTHER_KEY}, which neither `kms` nor `previous_kms` names: add it to `previous_kms`",
        ),
    }


async def test_a_hundred_foreign_wraps_hide_no_problem_of_our_own(keyring: Keyring) -> None:
    for number in range(101):
        await keyring.add(f"a{number:03}", WrappedKey(b"?", OTHER_KEY, "1"))
    await _orphan(keyring)
    problems = (await keyring.administration.verify("sample")).problems
    assert (len(problems), problems[0].id) == (100, "gone")


async def test_each_page_checks_its_own_data_keys_and_the_last_one_what_belongs_to_none(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _orphan(keyring)
    whole = await keyring.administration.verify("full")
    monkeypatch.setattr(verification, "MAX_PAGE_SIZE", 1)
    pages = [await keyring.administration.verify("full", after) for after in ("", "k000", "k001")]
    assert [(page.data_keys, page.records, page.next) for page in pages] == [
        (1, 5, "k000"),
        (1, 1, "k001"),
        (0, 0, None),
    ]
    assert [page.problems for page in pages] == [(), (), whole.problems]
    assert [page.fingerprint for page in pages] == ["", "", whole.fingerprint]
    assert await keyring.administration.verify("full") == whole
