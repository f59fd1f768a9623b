"""Tables as others make them: encodings, ids, names, schemas, versions."""

import base64
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import URL

from services.rotator.doctor import open_checks
from services.rotator.inspection import show_plans
from services.rotator.report import CommandOutcome
from services.rotator.runner import rollback, run
from shared.keyring.administration import RotationType
from shared.process.doctor import run_doctor
from tests.memory_kms import StoredKey
from tests.rotator.table.conftest import KEY, each_database
from tests.rotator.table.tenants import Tenants, aad, secret
from tests.shared.keyring.external.test_encoding import STORED

Build = Callable[[URL], Tenants]
REWRAP = RotationType.REWRAP_KEK


async def rewrap(tenants: Tenants) -> None:
    async with tenants.session() as session:
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ()), report.summary
        assert (await run(session, REWRAP)).outcome is CommandOutcome.NOTHING_TO_DO


@pytest.mark.parametrize("name", ["base64 as text", "HEX", "envelope", "keyset as JSON in bytes"])
async def test_each_encoding_is_written_as_it_was_read(
    build: Build, kms_key: StoredKey, name: str, sqlite_url: URL
) -> None:
    tenants, (encoding, encode) = build(sqlite_url), STORED[name]
    tenants.driver = {"table": "keys", "id": "id", "wrapped": "dek", "encoding": encoding.value}
    before = encode(await tenants.wrap(b"a data key"))
    await tenants.execute("CREATE TABLE keys (id INTEGER PRIMARY KEY, dek)")
    await tenants.execute("INSERT INTO keys VALUES (1, :dek), (2, NULL)", {"dek": before})
    kms_key.add_version("oak")
    await rewrap(tenants)
    ((after,),) = await tenants.execute("SELECT dek FROM keys WHERE id = 1")
    assert type(after) is type(before)
    assert len(after) == len(before)
    assert after != before
    assert (await tenants.do(rollback)).outcome is CommandOutcome.DONE
    assert await tenants.execute("SELECT dek FROM keys ORDER BY id") == [(before,), (None,)]


@each_database
async def test_ids_of_several_columns_and_names_that_need_quotes(
    build: Build, kms_key: StoredKey, any_database: URL
) -> None:
    tenants = build(any_database)
    quote = "`" if any_database.drivername == "mariadb" else '"'

    def q(name: str) -> str:
        return f"{quote}{name}{quote}"

    tenants.driver = {
        "table": "Tenant Keys",
        "id": ["Order", "sélect"],
        "wrapped": "DEK (b64)",
        "encoding": "base64",
        "aad": "{Order}/{sélect}/{region %}",
        "where": f"{q('region %')} LIKE 'e%' AND ':x' <> 'y'",
    }
    await tenants.execute(
        f"CREATE TABLE {q('Tenant Keys')} ({q('Order')} INTEGER, {q('sélect')} VARCHAR(50), {q('DEK (b64)')} "
        f"VARCHAR(400), {q('region %')} VARCHAR(9), PRIMARY KEY ({q('Order')}, {q('sélect')}))"
    )
    key_rows = [(order, name, "eu") for order in range(1, 13) for name in ("a", "b, c", 'd"')] + [(99, "a", "us")]
    rows = [
        {
            "order": order,
            "name": name,
            "dek": base64.b64encode(await tenants.wrap(b"%d" % order, f"{order}/{name}/{region}".encode())).decode(),
            "region": region,
        }
        for order, name, region in key_rows
    ]
    insert, read = f"INSERT INTO {q('Tenant Keys')} VALUES", f"SELECT * FROM {q('Tenant Keys')}"  # noqa: S608 - a test
    await tenants.execute(f"{insert} (:order, :name, :dek, :region)", *rows)
    kms_key.add_version("oak")
    async with tenants.session(batch_size=5) as session:
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ()), report.summary
        assert report.rotation
        assert report.rotation.done == 36
        keys = await session.administration.list_keys()
        assert [key.id for key in keys[:2]] == ['["1", "a"]', '["1", "b, c"]']
        assert {key.kek_version for key in keys} == {"oak"}
    before = {(row["order"], row["name"]): row["dek"] for row in rows}
    for order, name, dek, region in await tenants.execute(read):
        assert (dek != before[order, name]) == (region == "eu")
        assert await tenants.unwrap(base64.b64decode(dek), f"{order}/{name}/{region}".encode()) == b"%d" % order


@pytest.mark.parametrize(
    ("store", "column", "values"),
    [
        ("postgresql", "UUID", [UUID(int=n) for n in (300, 5, 70)]),
        ("postgresql", "BYTEA", [b"\0\xff", b"b", b"\x7f"]),
        (
            "postgresql",
            "TIMESTAMPTZ",
            ["2026-01-02 03:04:05.000001+00", "2026-01-02 03:04:05+02", "1999-01-01 00:00+00"],
        ),
        ("postgresql", "NUMERIC(30, 0)", [10**29, 9, -1]),
        ("mariadb", "BINARY(2)", [b"\0\xff", b"bb", b"\x7f\0"]),
        ("mariadb", "BIGINT UNSIGNED", [2**64 - 1, 9, 10]),
        ("mariadb", "UUID", [str(UUID(int=n)) for n in (300, 5, 70)]),
        ("mariadb", "DATETIME(6)", ["2026-01-02 03:04:05.000001", "2026-01-02 03:04:05", "1999-01-01"]),
        ("mariadb", "VARCHAR(20) COLLATE utf8mb4_general_ci", ["Acme", "beta", "_"]),
    ],
)
async def test_ids_of_other_types(
    build: Build, kms_key: StoredKey, request: pytest.FixtureRequest, store: str, column: str, values: list[object]
) -> None:
    tenants = build(request.getfixturevalue(f"{store}_database".replace("postgresql", "postgres")))
    binary = "BYTEA" if store == "postgresql" else "VARBINARY(300)"
    tenants.driver = {"table": "t", "id": "id", "wrapped": "dek"}
    await tenants.execute(f"CREATE TABLE t (id {column} PRIMARY KEY, dek {binary}, n INTEGER)")
    wraps = [{"id": value, "dek": await tenants.wrap(b"%d" % n), "n": n} for n, value in enumerate(values)]
    await tenants.execute("INSERT INTO t VALUES (:id, :dek, :n)", *wraps)
    kms_key.add_version("oak")
    async with tenants.session(batch_size=1) as session:
        report = await run(session, REWRAP)
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ()), report.summary
    for dek, n in await tenants.execute("SELECT dek, n FROM t"):
        assert dek != wraps[n]["dek"]
        assert await tenants.unwrap(bytes(dek)) == b"%d" % n


async def test_a_table_of_another_schema_has_its_journal_there(
    build: Build, kms_key: StoredKey, postgres_database: URL
) -> None:
    tenants = build(postgres_database)
    await tenants.execute('CREATE SCHEMA "App"')
    tenants.driver = {"table": "App.keys", "id": "id", "wrapped": "dek"}
    await tenants.execute('CREATE TABLE "App".keys (id INTEGER PRIMARY KEY, dek BYTEA)')
    await tenants.execute('INSERT INTO "App".keys VALUES (1, :dek)', {"dek": await tenants.wrap(b"k")})
    kms_key.add_version("oak")
    await rewrap(tenants)
    assert await tenants.execute('SELECT state FROM "App".keypulse_keys__dek_rotations') == [("done",)]
    tables = await tenants.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    assert tables == []


async def test_a_table_of_another_database_of_mariadb_has_its_journal_there(
    build: Build, kms_key: StoredKey, mariadb_database: URL
) -> None:
    tenants, other = build(mariadb_database), f"{mariadb_database.database}_other"
    await tenants.execute(f"CREATE DATABASE {other}")
    try:
        tenants.driver = {"table": f"{other}.keys", "id": "id", "wrapped": "dek"}
        await tenants.execute(f"CREATE TABLE {other}.keys (id INTEGER PRIMARY KEY, dek BLOB)")
        insert = f"INSERT INTO {other}.keys VALUES (1, :dek)"  # noqa: S608 - a test
        await tenants.execute(insert, {"dek": await tenants.wrap(b"k")})
        kms_key.add_version("oak")
        await rewrap(tenants)
        read = f"SELECT state FROM {other}.keypulse_keys__dek_rotations"  # noqa: S608 - a test
        assert await tenants.execute(read) == [("done",)]
    finally:
        await tenants.execute(f"DROP DATABASE {other}")


@pytest.mark.parametrize(
    ("column", "versions"),
    [
        ("VARCHAR(200)", [(f"{KEY}/versions/1", f"{KEY}/versions/2"), ("1", "2"), (None, "2")]),
        ("INTEGER", [(1, 2), (None, 2)]),
    ],
)
@each_database
async def test_a_version_is_written_in_the_form_in_which_it_was_read(
    build: Build, kms_key: StoredKey, any_database: URL, column: str, versions: list[tuple[object, object]]
) -> None:
    kms_key.add_version("1")
    tenants = build(any_database)
    await tenants.create()
    await tenants.execute("ALTER TABLE tenant_keys DROP COLUMN kms_version")
    await tenants.execute(f"ALTER TABLE tenant_keys ADD COLUMN kms_version {column}")
    await tenants.execute(
        "INSERT INTO tenant_keys (tenant, dek_ciphertext, kms_version) VALUES (:name, :dek, :version)",
        *[
            {"name": f"{n}", "dek": await tenants.wrap(secret(f"{n}"), aad(f"{n}")), "version": before}
            for n, (before, _) in enumerate(versions)
        ],
    )
    kms_key.add_version("2")
    await rewrap(tenants)
    query = "SELECT kms_version FROM tenant_keys ORDER BY tenant"
    assert await tenants.execute(query) == [(after,) for _, after in versions]
    assert (await tenants.do(rollback)).outcome is CommandOutcome.DONE
    assert await tenants.execute(query) == [(before,) for before, _ in versions]


async def test_a_row_that_another_kms_key_wraps_is_left_alone(in_a_file: Tenants, kms_key: StoredKey) -> None:
    await in_a_file.execute(
        "INSERT INTO tenant_keys (tenant, dek_ciphertext, kms_version) VALUES ('other', x'78', 'vault/other/v/1')"
    )
    kms_key.add_version("oak")
    async with in_a_file.session() as session:
        report = await run(session, REWRAP)
        assert (report.outcome, [(each.id, each.is_foreign) for each in report.problems]) == (
            CommandOutcome.DONE,
            [("other", True)],
        ), report.summary
        (planned,) = (await show_plans(session, (REWRAP,))).plans
        assert planned.excluded == ("1 row wrapped by vault/other, another KMS key; left as before",)
        lines = [*session.progress.lines, *(each.error for each in report.problems)]  # type: ignore[attr-defined]
    checks = {each.name: each for each in await run_doctor(in_a_file.settings(), open_checks)}
    assert checks["driver keyring"].is_ok
    lines.append(checks["driver keyring"].detail)
    assert lines[-1] == "3 data keys can be read; 1 of another KMS key are left as they are"
    assert [line for line in lines if "previous_kms" in line] == []  # which the driver's configuration refuses
    assert await in_a_file.execute("SELECT dek_ciphertext FROM tenant_keys WHERE tenant = 'other'") == [(b"x",)]


async def test_two_columns_of_a_table_are_rotated_separately(in_a_file: Tenants, kms_key: StoredKey) -> None:
    await in_a_file.execute("ALTER TABLE tenant_keys ADD COLUMN second BLOB")
    await in_a_file.execute("UPDATE tenant_keys SET second = :dek", {"dek": await in_a_file.wrap(b"second")})
    kms_key.add_version("oak")
    await rewrap(in_a_file)
    in_a_file.driver = {"table": "tenant_keys", "id": "tenant", "wrapped": "second"}
    await rewrap(in_a_file)
    assert await in_a_file.unreadable() == []
    for (dek,) in await in_a_file.execute("SELECT second FROM tenant_keys"):
        assert await in_a_file.unwrap(dek) == b"second"
