"""Every other command of the rotator on a table of another program: plan, census, verify, restore, retire."""

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import URL

from services.rotator import inspection
from services.rotator.doctor import open_checks
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.retirement import retire_version
from services.rotator.runner import restore_backup, run
from shared.config.errors import ConfigurationError
from shared.keyring.administration import AdministrationError, RotationType
from shared.process.doctor import run_doctor
from tests.memory_kms import StoredKey
from tests.rotator.table.conftest import KEY
from tests.rotator.table.tenants import Tenants, aad, secret

Build = Callable[[URL], Tenants]
REWRAP = RotationType.REWRAP_KEK


async def test_doctor_reads_the_table_and_leaves_no_table_behind(in_a_file: Tenants) -> None:
    results = {result.name: result for result in await run_doctor(in_a_file.settings(), open_checks)}
    assert results["driver keyring"].detail == "3 data keys can be read"
    assert await list_tables(in_a_file) == ["tenant_keys"]
    in_a_file.driver["wrapped"] = "dek"
    results = {result.name: result for result in await run_doctor(in_a_file.settings(), open_checks)}
    assert not results["driver keyring"].is_ok
    assert "dek" in results["driver keyring"].detail


@pytest.mark.parametrize(
    ("driver", "detail", "hint"),
    [
        ({"aad": "{tenant}"}, "row acme cannot be unwrapped: KMS: invalid_request (version elm)", "check `driver.aad`"),
        ({"encoding": "hex"}, "3 rows of the table cannot be read", "check `driver.encoding` and `driver.aad`"),
    ],
)
async def test_doctor_names_a_table_that_is_not_as_described(
    in_a_file: Tenants, driver: dict[str, str], detail: str, hint: str
) -> None:
    in_a_file.driver |= driver
    results = {result.name: result for result in await run_doctor(in_a_file.settings(), open_checks)}
    found = results["driver keyring"]
    assert (found.is_ok, found.detail, found.hint) == (False, detail, hint)


async def test_doctor_notices_an_account_that_may_not_change_the_table(build: Build, postgres_database: URL) -> None:
    tenants = build(postgres_database)
    await tenants.create()
    await tenants.add(["acme"])
    account = f"reader_{uuid4().hex}"
    await tenants.execute(f"CREATE ROLE {account} LOGIN PASSWORD 'x'")
    await tenants.execute(f"GRANT SELECT ON tenant_keys TO {account}")
    try:
        reader = replace(tenants, url=postgres_database.set(username=account, password="x"))
        results = {result.name: result for result in await run_doctor(reader.settings(), open_checks)}
        assert "permission denied" in results["driver keyring"].detail
        assert await tenants.unreadable() == []
    finally:
        await tenants.execute(f"REVOKE ALL ON tenant_keys FROM {account}")
        await tenants.execute(f"DROP ROLE {account}")


async def test_rows_that_are_hidden_from_the_account_are_not_taken_for_absent(
    build: Build, postgres_database: URL
) -> None:
    tenants = build(postgres_database)
    await tenants.create()
    await tenants.add(["acme"])
    account = f"rotator_{uuid4().hex}"
    await tenants.execute(f"CREATE ROLE {account} LOGIN PASSWORD 'x'")
    await tenants.execute(f"GRANT SELECT, UPDATE ON tenant_keys TO {account}")
    await tenants.execute("ALTER TABLE tenant_keys ENABLE ROW LEVEL SECURITY")
    hidden = replace(tenants, url=postgres_database.set(username=account, password="x"))
    try:
        with pytest.raises(AdministrationError, match="row-level security hides rows of tenant_keys"):
            async with hidden.session():
                pass
        await tenants.execute(f"ALTER ROLE {account} BYPASSRLS")
        async with hidden.session() as session:
            usage = await session.administration.count_key_usage()
            assert [each.data_keys for each in usage.versions] == [1]
    finally:
        await tenants.execute(f"REVOKE ALL ON tenant_keys FROM {account}")
        await tenants.execute(f"DROP ROLE {account}")


async def list_tables(tenants: Tenants) -> list[str]:
    found = await tenants.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    return [name for (name,) in found]


async def test_commands_that_read_or_are_refused_leave_no_table_behind(in_a_file: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    async with in_a_file.session() as session:
        plan = await inspection.show_plans(session, tuple(RotationType))
        assert [(each.type, each.data_keys) for each in plan.plans] == [(REWRAP, 3)]
        assert plan.next_commands == ("run --type rewrap-kek",)
        census = (await inspection.show_key_usage(session)).census
        assert census
        assert [(each.kek, each.kek_version, each.data_keys) for each in census.versions] == [(KEY, "elm", 3)]
        assert (await inspection.show_status(session)).summary == "there was no rotation yet"
        assert (await inspection.run_verification(session, full=True)).outcome is CommandOutcome.DONE
        with pytest.raises(RotatorError, match="the driver table makes no new data keys; nothing was changed") as error:
            await run(session, RotationType.NEW_DEK)
        assert error.value.next_commands == ("run --type rewrap-kek",)
    assert await list_tables(in_a_file) == ["tenant_keys"]


async def test_without_a_column_of_versions_each_row_may_need_any_until_it_was_wrapped_by_this_keyring(
    tenants: Tenants, kms_key: StoredKey
) -> None:
    tenants.driver["key_version"] = None
    kms_key.add_version("oak")
    async with tenants.session() as session:
        with pytest.raises(RotatorError, match="version elm may be needed by 3 data keys whose version cannot be read"):
            await retire_version(session, "elm")
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        second = await run(session, REWRAP)
        assert second.outcome is CommandOutcome.NOTHING_TO_DO, second.summary
        for backup in session.backups.folder.iterdir():
            backup.unlink()
        done = await retire_version(session, "elm", 1)
        assert "version elm is disabled" in done.summary
        assert await tenants.unreadable() == []
        new = await tenants.wrap(b"another", aad("acme"))  # by oak, which nobody knows
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :new WHERE tenant = 'acme'", {"new": new})
        census = await session.administration.count_key_usage()
        assert {each.kek_version: each.data_keys for each in census.versions} == {"oak": 2, "": 1}


async def test_a_provider_whose_ciphertexts_name_their_version_is_asked(
    in_a_file: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_file.driver["key_version"] = None
    async with in_a_file.session() as session:
        profile = session.administration._external.wrapping.kms.profile  # type: ignore[attr-defined]
        assert profile.parse_version(b"anything") is None
        monkeypatch.setattr(
            type(profile), "parse_version", lambda _self, ciphertext: ciphertext[1 : 1 + ciphertext[0]].decode()
        )
        census = await session.administration.count_key_usage()
    assert [(each.kek_version, each.data_keys) for each in census.versions] == [("elm", 3)]


async def test_a_version_that_a_row_needs_is_not_retired(tenants: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    async with tenants.session() as session:
        with pytest.raises(RotatorError, match="version elm is needed by 3 data keys"):
            await retire_version(session, "elm")
        lease = await session.administration.acquire_lease("a test", 60)
        with pytest.raises(AdministrationError, match="3 rows of tenant_keys are wrapped by version elm"):
            await session.administration.retire_version("elm", lease.token)


async def test_a_row_that_where_leaves_out_keeps_its_version(tenants: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    await tenants.execute("UPDATE tenant_keys SET deleted_at = '2026-01-01 00:00:00' WHERE tenant = 'acme'")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        for backup in session.backups.folder.iterdir():
            backup.unlink()
        excluded = (await session.administration.count_key_usage()).excluded
        count = sum(each.data_keys for each in excluded)
        assert {each.kek_version for each in excluded} == {"elm"}
        with pytest.raises(
            RotatorError, match=f"elm is needed by {count} rows? that `driver.where` leaves out; nothing"
        ):
            await retire_version(session, "elm", 1)
    tenants.driver["key_version"] = None
    async with tenants.session() as session:
        with pytest.raises(RotatorError, match=f"elm may be needed by {count} rows? that `driver.where` leaves out"):
            await retire_version(session, "elm", 1)
    tenants.driver["key_version"] = "kms_version"
    by_oak = "UPDATE tenant_keys SET kms_version = 'oak', dek_ciphertext = :new WHERE deleted_at IS NOT NULL"
    await tenants.execute(by_oak, {"new": await tenants.wrap(secret("acme"), aad("acme"))})
    assert "version elm is disabled" in (await tenants.do(retire_version, "elm", 1)).summary


async def test_nothing_is_wrapped_by_a_retired_version(tenants: Tenants, kms_key: StoredKey) -> None:
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        lease = await session.administration.acquire_lease("a test", 60)
        await session.administration.retire_version("elm", lease.token)
        await session.administration.release_lease(lease.token)
        kms_key.primary = "elm"
        with pytest.raises(RotatorError, match="version elm of vault/tenants was retired"):
            await run(session, REWRAP)


async def test_a_backup_is_checked_and_put_back(tenants: Tenants, kms_key: StoredKey) -> None:
    before = await tenants.rows()
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, REWRAP)).outcome is CommandOutcome.DONE
        checked = await inspection.check_backup(session, "latest")
        assert (checked.outcome, checked.problems) == (CommandOutcome.DONE, ())
        await tenants.execute("UPDATE tenant_keys SET dek_ciphertext = :bad WHERE tenant = 'acme'", {"bad": b"bad"})
        await tenants.execute("DELETE FROM tenant_keys WHERE tenant = 'beta'")
        restored = await restore_backup(session, "latest")
        assert restored.outcome is CommandOutcome.FAILED  # of a row that is gone there is no more than its wrapped key
        assert "beta (the row is gone" in restored.problems[0].error
    del tenants.secrets["beta"]
    after = await tenants.rows()
    assert after.pop("acme") == before["acme"]
    assert {version for _, version in after.values()} == {"oak"}  # what opens stays as it is
    assert await tenants.unreadable() == []


@pytest.mark.parametrize(
    ("driver", "error"),
    [
        ({"table": "other"}, "there is no table other; correct `driver.table`"),
        ({"wrapped": "dek", "aad": "{region}"}, "the table tenant_keys has no column dek, region; correct `driver`"),
        ({"id": "note"}, "nothing says that note is unique in tenant_keys; expected a primary key or a unique"),
        ({"where": "deleted_at ="}, "the database does not understand `driver.where`: deleted_at ="),
        ({"where": "no_column = 1"}, "the database does not understand `driver.where`: no_column = 1"),
    ],
)
async def test_a_description_that_does_not_fit_is_refused(tenants: Tenants, driver: dict[str, str], error: str) -> None:
    tenants.driver |= driver
    with pytest.raises(AdministrationError, match=error):
        async with tenants.session():
            pass


async def test_a_table_without_transactions_is_refused(tenants: Tenants) -> None:
    if tenants.url.drivername != "mariadb":
        pytest.skip("all tables of the others have them")
    await tenants.execute("ALTER TABLE tenant_keys ENGINE=MyISAM")
    with pytest.raises(AdministrationError, match="stored by MyISAM, which has no transactions; expected InnoDB"):
        async with tenants.session():
            pass


async def test_a_row_without_an_id_is_refused(in_a_file: Tenants) -> None:
    await in_a_file.execute("INSERT INTO tenant_keys (tenant, dek_ciphertext) VALUES (NULL, x'01')")
    with pytest.raises(AdministrationError, match="a row of tenant_keys has NULL in tenant"):
        async with in_a_file.session():
            pass


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("mysql://u@h/d", "expected sqlite:///FILE"),
        ("mariadb://u@h/", "or mariadb://USER@HOST/NAME"),
        ("mariadb://u@h/d?charset=latin1", "charset is no parameter; expected one of read_default_file, ssl_ca"),
    ],
)
async def test_another_database_is_refused(in_a_file: Tenants, url: str, error: str) -> None:
    in_a_file.driver["database"] = url
    with pytest.raises(ConfigurationError, match=error):
        in_a_file.settings()
