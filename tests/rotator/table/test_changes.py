"""The table's own program goes on meanwhile; and rows that are wrong stop a rotation before it changes anything."""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import URL

from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import retire_version
from services.rotator.runner import resume, rollback, run
from shared.config.errors import ConfigurationError
from shared.keyring.administration import RotationType
from tests.memory_kms import MemoryKey, StoredKey
from tests.rotator.table.conftest import KEY
from tests.rotator.table.tenants import Tenants, aad, secret

REWRAP = RotationType.REWRAP_KEK


def interfere(monkeypatch: pytest.MonkeyPatch, change: Callable[[], Awaitable[None]], plaintext: bytes) -> None:
    """Has `change` done once, right after this data key was wrapped anew and before that is stored."""
    encrypt, left = MemoryKey.encrypt, [change]

    async def encrypt_and_change(self: MemoryKey, content: bytes, bound_to: bytes, *, timeout: float) -> object:
        encrypted = await encrypt(self, content, bound_to, timeout=timeout)
        if content == plaintext and left:
            await left.pop()()
        return encrypted

    monkeypatch.setattr(MemoryKey, "encrypt", encrypt_and_change)


async def test_what_the_program_writes_and_deletes_meanwhile_is_left_as_it_is(
    tenants: Tenants, kms_key: StoredKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await tenants.wrap(b"another data key", aad("acme"))  # by the former version
    late = await tenants.wrap(b"a late one", aad("late"))
    kms_key.add_version("oak")

    async def change() -> None:
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :new WHERE tenant = 'acme'", {"new": new})
        await tenants.execute("DELETE FROM tenant_keys WHERE tenant = 'beta'")
        await tenants.execute(
            "INSERT INTO tenant_keys (tenant, dek_ciphertext, kms_version) VALUES ('late', :dek, 'elm')", {"dek": late}
        )
        tenants.secrets |= {"acme": b"another data key", "late": b"a late one"}
        del tenants.secrets["beta"]

    async with tenants.session() as session:
        interfere(monkeypatch, change, secret("acme"))
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ()), report
        assert set(tenants.secrets) == {"acme", "late", "Ümläut 'quoted'"}
        assert await tenants.unreadable() == []
        rows = await tenants.rows()
        assert (rows.pop("late"), {version for _, version in rows.values()}) == ((late, "elm"), {"oak"})
        back = await rollback(session)
        assert (back.outcome, back.problems) == (CommandOutcome.DONE, ())
        assert await tenants.unreadable() == []
        assert (await tenants.rows())["acme"] == (new, "elm")
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        assert await tenants.unreadable() == []
        assert {version for _, version in (await tenants.rows()).values()} == {"oak"}


@pytest.mark.parametrize(
    "write",
    [
        "INSERT INTO tenant_keys (tenant, dek_ciphertext) VALUES (:before, :dek)",
        "INSERT INTO tenant_keys (tenant, dek_ciphertext) VALUES (:after, :dek)",
        "UPDATE tenant_keys SET dek_ciphertext = :dek WHERE tenant = 'acme'",
    ],
)
async def test_a_rotation_ends_while_the_program_writes_rows_that_name_no_version(
    tenants: Tenants, kms_key: StoredKey, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """With each call of KMS the program writes once more, so that there is always a row of a version nobody knows."""
    tenants.driver |= {"key_version": None, "aad": None}
    for name, (wrapped, _) in (await tenants.rows()).items():
        dek = await tenants.wrap(await tenants.unwrap(wrapped, aad(name)))
        await tenants.execute(
            "UPDATE tenant_keys SET dek_ciphertext = :dek WHERE tenant = :name", {"dek": dek, "name": name}
        )
    kms_key.add_version("oak")
    encrypt = MemoryKey.encrypt
    writes: list[bytes] = []

    async def encrypt_and_write(self: MemoryKey, content: bytes, bound_to: bytes, *, timeout: float) -> object:
        assert len(writes) < 100, "the rotation does not end"
        dek = await encrypt(self, b"a late one", b"", timeout=timeout)
        writes.append(dek.ciphertext)
        values = {"before": f"a-{len(writes):03}", "after": f"zz-{len(writes):03}", "dek": dek.ciphertext}
        await tenants.execute(write, {name: value for name, value in values.items() if f":{name}" in write})
        return await encrypt(self, content, bound_to, timeout=timeout)

    monkeypatch.setattr(MemoryKey, "encrypt", encrypt_and_write)
    report = await tenants.do(run, REWRAP, batch_size=1)
    assert (report.outcome, report.problems) == (CommandOutcome.DONE, ()), report
    assert report.rotation
    assert report.rotation.done <= report.rotation.total
    found = {await tenants.unwrap(wrapped) for wrapped, _ in (await tenants.rows()).values()}
    assert found == {b"a late one", *(secret(name) for name in tenants.secrets if f"'{name}'" not in write)}


async def test_a_rollback_leaves_what_was_changed_or_deleted_since(tenants: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        await tenants.execute("DELETE FROM tenant_keys WHERE tenant = 'beta'")
        new = await tenants.wrap(b"another", aad("acme"))
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :new WHERE tenant = 'acme'", {"new": new})
        report = await rollback(session)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ())
    rows = await tenants.rows()
    assert (rows["acme"][0], rows["Ümläut 'quoted'"][1], sorted(rows)) == (new, "elm", ["acme", "Ümläut 'quoted'"])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("UPDATE tenant_keys SET dek_ciphertext = x'0102' WHERE tenant = 'beta'", r"beta \(KMS: invalid_request"),
        (
            "UPDATE tenant_keys SET dek_ciphertext = 'text' WHERE tenant = 'beta'",
            r"beta \(its dek_ciphertext cannot be",
        ),
        ("UPDATE tenant_keys SET tenant = 'moved' WHERE tenant = 'beta'", r"moved \(KMS: invalid_request"),
        ("UPDATE tenant_keys SET tenant = '' WHERE tenant = 'beta'", r"\(its id is empty"),
    ],
)
async def test_a_row_that_cannot_be_unwrapped_stops_all_and_is_named(
    in_a_file: Tenants, kms_key: StoredKey, change: str, error: str
) -> None:
    await in_a_file.execute(change)
    before = await in_a_file.execute("SELECT * FROM tenant_keys")
    kms_key.add_version("oak")
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match=error) as refused:
            await run(session, REWRAP)
        assert "nothing was changed" in refused.value.message
        assert "driver.where" in refused.value.message
    assert await in_a_file.execute("SELECT * FROM tenant_keys") == before
    in_a_file.driver["where"] = "tenant = 'acme'"
    assert (await in_a_file.do(run, REWRAP)).outcome is CommandOutcome.DONE


async def test_a_wrong_aad_is_noticed_before_anything_is_changed(in_a_file: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    before = await in_a_file.rows()
    in_a_file.driver["aad"] = "{tenant}"
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match=r"acme \(KMS: invalid_request.*check `driver\.aad`"):
            await run(session, REWRAP)
    assert await in_a_file.rows() == before


async def test_an_aad_that_a_rotation_would_change_is_refused(in_a_file: Tenants) -> None:
    in_a_file.driver["aad"] = "{tenant}/{kms_version}"
    with pytest.raises(ConfigurationError, match="`aad` uses kms_version, which a rotation changes"):
        in_a_file.settings()


async def test_a_condition_that_rows_leave_by_the_rotation_itself_is_refused(
    in_a_file: Tenants, kms_key: StoredKey
) -> None:
    in_a_file.driver["where"] = "kms_version = 'elm'"
    before = await in_a_file.rows()
    kms_key.add_version("oak")
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match=r"leaves `driver\.where` as soon as it is wrapped anew"):
            await run(session, REWRAP)
    assert await in_a_file.rows() == before
    in_a_file.driver["where"] = None
    assert (await in_a_file.do(resume)).outcome is CommandOutcome.DONE
    assert await in_a_file.unreadable() == []


async def test_a_column_that_names_a_version_which_wraps_nothing_is_noticed(
    in_a_file: Tenants, kms_key: StoredKey
) -> None:
    kms_key.add_version("oak")
    await in_a_file.execute("UPDATE tenant_keys SET kms_version = 'oak'")  # `elm` wraps them all
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match=r"acme \(its kms_version says oak, and another version wraps it"):
            await run(session, REWRAP)
        with pytest.raises(
            RotatorError, match="version elm may be needed: nothing was changed, because of these rows: acme"
        ):
            await retire_version(session, "elm")
    assert await in_a_file.unreadable() == []
    in_a_file.driver["key_version"] = None
    async with in_a_file.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        assert {key.kek_version for key in await session.administration.list_keys()} == {"oak"}


async def test_a_column_with_the_name_of_the_kms_key_stays_as_it_is(in_a_file: Tenants, kms_key: StoredKey) -> None:
    await in_a_file.execute("UPDATE tenant_keys SET kms_version = :name", {"name": KEY})
    kms_key.add_version("oak")
    async with in_a_file.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        assert (await run(session, REWRAP)).outcome is CommandOutcome.NOTHING_TO_DO
    assert {version for _, version in (await in_a_file.rows()).values()} == {KEY}
    assert await in_a_file.unreadable() == []


async def test_a_row_that_goes_wrong_during_the_run_is_left_out_and_retried(
    tenants: Tenants, kms_key: StoredKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (await tenants.rows())["beta"][0]
    kms_key.add_version("oak")

    async def change() -> None:
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :bad WHERE tenant = 'beta'", {"bad": b"bad"})

    interfere(monkeypatch, change, secret("acme"))
    async with tenants.session() as session:
        report = await run(session, REWRAP)
        assert (report.outcome, {each.id for each in report.problems}) == (CommandOutcome.FAILED, {"beta"})
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :good WHERE tenant = 'beta'", {"good": good})
        assert (await resume(session)).outcome is CommandOutcome.DONE
    assert await tenants.unreadable() == []
    assert {version for _, version in (await tenants.rows()).values()} == {"oak"}


async def test_a_wrapped_key_that_does_not_fit_is_never_cut(
    build: Callable[[URL], Tenants], kms_key: StoredKey, mariadb_database: URL
) -> None:
    """MariaDB cuts values where its mode is not strict, as old installations have it."""
    tenants = build(mariadb_database)
    wrapped = await tenants.wrap(b"k")
    tenants.driver = {"table": "t", "id": "id", "wrapped": "dek"}
    await tenants.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, dek VARBINARY({len(wrapped)}))")
    await tenants.execute("INSERT INTO t VALUES (1, :dek)", {"dek": wrapped})
    await tenants.execute("SET GLOBAL sql_mode = ''")
    kms_key.add_version("a-longer-name")
    try:
        async with tenants.session() as session:
            with pytest.raises(RotatorError, match="Data too long for column 'dek'"):
                await run(session, REWRAP)
    finally:
        await tenants.execute("SET GLOBAL sql_mode = DEFAULT")
    assert await tenants.execute("SELECT dek FROM t") == [(wrapped,)]
