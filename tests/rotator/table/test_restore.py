"""A backup is put back into rows that do not open; those that do stay as they are, and what is replaced is kept."""

import base64
from collections.abc import Callable

import pytest
from sqlalchemy import URL

from services.rotator.report import CommandOutcome
from services.rotator.runner import restore_backup, run
from shared.keyring.administration import RotationType
from shared.keyring.external.table import Encoding
from tests.memory_kms import MemoryKey, StoredKey
from tests.rotator.table.tenants import PREFIX, Tenants, secret

NAMES = [f"t{number}" for number in range(10)]
MOVED, DAMAGED, BOTH = NAMES[:3], NAMES[3], NAMES[4]
WRITE = "UPDATE tenant_keys SET dek_ciphertext = :wrapped, note = :note WHERE tenant = :tenant"


def bind(tenant: str, region: str) -> bytes:
    return f"{tenant}/{region}".encode()


async def fill(tenants: Tenants) -> None:
    """Ten rows whose AAD has a column that may change."""
    await tenants.execute("DELETE FROM tenant_keys")
    tenants.driver["aad"] = "{tenant}/{note}"
    for name in NAMES:
        insert = (
            "INSERT INTO tenant_keys (tenant, dek_ciphertext, kms_version, note) VALUES (:tenant, :dek, 'elm', 'x')"
        )
        await tenants.execute(insert, {"tenant": name, "dek": await tenants.wrap(secret(name), bind(name, "x"))})


async def list_lost(tenants: Tenants) -> list[str]:
    """Those that do not open with today's AAD."""
    lost = []
    for tenant, wrapped, region in await tenants.execute("SELECT tenant, dek_ciphertext, note FROM tenant_keys"):
        try:
            opened = await tenants.unwrap(bytes(wrapped), bind(tenant, region))
        except Exception:  # noqa: BLE001 - whatever it is
            opened = b""
        lost += [tenant] if opened != secret(tenant) else []
    return lost


async def test_what_opens_is_left_alone_and_what_does_not_is_wrapped_for_the_aad_of_today(
    tenants: Tenants, kms_key: StoredKey
) -> None:
    await fill(tenants)
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        for name in MOVED:  # the service moves them to another region, and wraps them for it
            wrapped = await tenants.wrap(secret(name), bind(name, "y"))
            await tenants.execute(WRITE, {"tenant": name, "wrapped": wrapped, "note": "y"})
        await tenants.execute(WRITE, {"tenant": DAMAGED, "wrapped": b"damaged", "note": "x"})
        await tenants.execute(WRITE, {"tenant": BOTH, "wrapped": b"damaged, too", "note": "y"})
        before = await tenants.rows()
        report = await restore_backup(session, "latest")
        assert (report.outcome, report.summary) == (
            CommandOutcome.DONE,
            "2 data keys as in the backup again; everything can be read",
        )
        second = await restore_backup(session, "latest")
        assert second.summary.startswith("all was as in the backup")
        progress = await session.administration.get_progress()
        assert progress
        assert progress.rotation_id.startswith("rewrap-kek")
    assert await list_lost(tenants) == []
    after = await tenants.rows()
    assert sorted(name for name in NAMES if after[name] != before[name]) == [DAMAGED, BOTH]
    stored = f"SELECT data_key_id, old_wrapped FROM {PREFIX}_rewraps WHERE outcome = 'restored' ORDER BY data_key_id"  # noqa: S608
    assert [(name, bytes(old)) for name, old in await tenants.execute(stored)] == [
        (DAMAGED, b"damaged"),
        (BOTH, b"damaged, too"),
    ]
    entries = f"SELECT outcome, detail FROM {PREFIX}_journal_entries WHERE step = 'restore'"  # noqa: S608 - a test's
    ((outcome, detail),) = await tenants.execute(entries)
    assert (outcome, detail.partition(" by ")[0]) == ("succeeded", "2 of 10 rows of a backup were put back")


async def test_what_another_key_wraps_is_not_replaced(tenants: Tenants, kms_key: StoredKey) -> None:
    await fill(tenants)
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        await tenants.execute(
            "UPDATE tenant_keys SET kms_version = 'vault/other/v/1', dek_ciphertext = :its", {"its": b"?"}
        )
        report = await restore_backup(session, "latest")
        assert report.outcome is CommandOutcome.FAILED
        assert "t0 (it is wrapped by vault/other, another KMS key; it is left as it is)" in report.problems[0].error
    assert set((await tenants.rows()).values()) == {(b"?", "vault/other/v/1")}


async def test_a_row_that_moves_while_it_is_wrapped_anew_is_not_replaced(
    tenants: Tenants, kms_key: StoredKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tenants)
    kms_key.add_version("oak")
    encrypt = MemoryKey.encrypt

    async def move_and_encrypt(self: MemoryKey, content: bytes, bound_to: bytes, *, timeout: float) -> object:
        await tenants.execute("UPDATE tenant_keys SET note = 'z' WHERE tenant = :tenant", {"tenant": BOTH})
        return await encrypt(self, content, bound_to, timeout=timeout)

    async with tenants.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        await tenants.execute(WRITE, {"tenant": BOTH, "wrapped": b"damaged", "note": "y"})
        monkeypatch.setattr(MemoryKey, "encrypt", move_and_encrypt)
        report = await restore_backup(session, "latest")
    assert report.outcome is CommandOutcome.FAILED
    assert f"{BOTH} (another program changed it meanwhile)" in report.problems[0].error
    assert (await tenants.rows())[BOTH][0] == b"damaged"


@pytest.mark.parametrize("damage", ["", "what is this?"])
@pytest.mark.parametrize("encoding", [Encoding.BASE64, Encoding.HEX])
async def test_a_text_that_is_no_wrapped_key_any_more_is_replaced(
    any_database: URL, build: Callable[[URL], Tenants], kms_key: StoredKey, encoding: Encoding, damage: str
) -> None:
    tenants = build(any_database)
    tenants.driver = {"table": "t", "id": "id", "wrapped": "dek", "encoding": encoding.value}
    await tenants.execute("CREATE TABLE t (id VARCHAR(9) PRIMARY KEY, dek VARCHAR(400))")
    wrapped = await tenants.wrap(b"key")
    before = base64.b64encode(wrapped).decode() if encoding is Encoding.BASE64 else wrapped.hex()
    await tenants.execute("INSERT INTO t VALUES ('a', :dek), ('b', :dek)", {"dek": before})
    kms_key.add_version("oak")
    async with tenants.session() as session:
        assert (await run(session, RotationType.REWRAP_KEK)).outcome is CommandOutcome.DONE
        rotated = await tenants.execute("SELECT id, dek FROM t ORDER BY id")
        await tenants.execute("UPDATE t SET dek = :damage WHERE id = 'b'", {"damage": damage})
        report = await restore_backup(session, "latest")
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ())
    assert await tenants.execute("SELECT id, dek FROM t ORDER BY id") == [rotated[0], ("b", before)]
    ((old,),) = await tenants.execute("SELECT old_wrapped FROM keypulse_t__dek_rewraps WHERE outcome = 'restored'")
    assert bytes(old) == damage.encode()
