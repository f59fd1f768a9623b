"""A backup: whole or not there, readable by who may use the KMS key, and every change of it noticed."""

import base64
import csv
import hashlib
import io
import json
import stat
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState
from services.rotator import backups
from services.rotator.backups import BackupError, EncryptedFileWriter
from services.rotator.inspection import check_backup
from services.rotator.report import CommandOutcome, RotatorError
from services.rotator.runner import run
from services.rotator.session import CommandSession
from shared.keyring.administration import MAX_PAGE_SIZE, RotationType, StoredKey
from tests.iterations import LONG
from tests.rotator.keyring_to_rotate import (
    KEY,
    SECONDS,
    NewVersion,
    Rotated,
    data_key_id,
    find_latest_backup,
    write_backup,
)

DATA_KEYS = 100_000 if LONG else 10_000


async def read(session: CommandSession, file: Path) -> list[StoredKey]:
    pages = backups.read_pages(file, session.wrapping, backups.SummaryBuilder())
    return [row async for rows in pages for row in rows]


async def test_what_is_read_is_what_was_written_and_only_its_owner_may_read_it(rotated: Rotated) -> None:
    async with rotated.session() as session:
        file, summary = await write_backup(session)
        assert await read(session, file) == await session.administration.list_backup_rows()
        assert await backups.read_whole_backup(file, session.wrapping) == summary
        verification = await session.administration.verify("full")
    assert (summary.data_keys, summary.fingerprint) == (3, verification.fingerprint)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]


async def test_its_content_is_csv_of_metadata_and_wrapped_keys(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        file, _ = await write_backup(session)
        wrapped = base64.b64decode(backups.read_header(file).wrapped)
        key = (await session.kms.decrypt(wrapped, b"keypulse backup\0one", timeout=SECONDS)).plaintext
    ((text, _), (last, _)) = backups.read_encrypted_pages(file, key)
    assert json.loads(last)["sha256"] == hashlib.sha256(text).hexdigest()
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    assert [row["id"] for row in rows] == [data_key_id(number) for number in range(3)]
    assert {row["kek"] for row in rows} == {KEY}


async def test_every_single_changed_byte_and_every_cut_is_noticed(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        file, summary = await write_backup(session)
        whole = file.read_bytes()
        begin = whole.index(b"\n") + 1
        for position in {*range(0, len(whole), 41), *range(begin, begin + 8), len(whole) - 1}:
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(BackupError):
                await backups.read_whole_backup(file, session.wrapping)
            file.write_bytes(whole[:position])
            with pytest.raises(BackupError):
                await backups.read_whole_backup(file, session.wrapping)
        file.write_bytes(whole + b"\0")
        with pytest.raises(BackupError):
            await backups.read_whole_backup(file, session.wrapping)
        file.write_bytes(whole)
        assert await backups.read_whole_backup(file, session.wrapping) == summary


def test_pages_cannot_be_left_out_or_be_reordered_and_the_last_one_cannot_be_missing(tmp_path: Path) -> None:
    file, key = tmp_path / "file", bytes(32)
    writer = backups.EncryptedFileWriter(file, b"{}", key)
    for page in (b"first", b"other"):
        writer.write_page(page)
    writer.finish(b"at last")
    assert list(backups.read_encrypted_pages(file, key)) == [
        (b"first", False),
        (b"other", False),
        (b"at last", True),
    ]
    size = 4 + 5 + 16
    head, one, two, last = (
        (whole := file.read_bytes())[:3],
        whole[3:][:size],
        whole[3:][size:][:size],
        whole[3:][2 * size :],
    )
    for changed in (head + two + one + last, head + one + last, head + one + two, head + last, head):
        file.write_bytes(changed)
        with pytest.raises(backups.FileDamagedError):
            list(backups.read_encrypted_pages(file, key))


async def test_a_backup_that_fails_halfway_leaves_nothing(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:

        async def rows(after: str = "", _limit: int = 0) -> list[StoredKey]:
            if after:
                raise OSError(28, "No space left on device")
            return list(all_rows)

        all_rows = await session.administration.list_backup_rows()
        session.administration.list_backup_rows = rows  # type: ignore[method-assign,assignment]
        with pytest.raises(BackupError, match="No space left on device"):
            await write_backup(session)
        assert list(session.backups.folder.iterdir()) == []


def test_no_file_replaces_another(tmp_path: Path) -> None:
    file = tmp_path / "file"
    backups.EncryptedFileWriter(file, b"{}", bytes(32)).finish(b"first")
    other = backups.EncryptedFileWriter(file, b"{}", bytes(32))
    with pytest.raises(FileExistsError):
        other.finish(b"other")
    other.discard()
    assert list(backups.read_encrypted_pages(file, bytes(32))) == [(b"first", True)]
    assert list(tmp_path.iterdir()) == [file]


async def test_what_a_killed_runner_left_half_is_no_backup_and_blocks_nobody(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        file = session.backups.get_new_path("one", datetime(2026, 1, 1, tzinfo=UTC))
        half = file.with_name(f".{file.name}.part")
        half.write_bytes(b"half")
        assert session.backups.list_backups() == []
        with pytest.raises(BackupError, match="there is no backup of this keyring in"):
            await find_latest_backup(session)
        backups.EncryptedFileWriter(file, b"{}", bytes(32)).finish(b"")
        assert not half.exists()


async def test_restore_check_compares_the_latest_backup_with_the_keyring(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    async with rotated.session() as session:
        await write_backup(session, "older")
        file, summary = await write_backup(session, "newer")
        report = await check_backup(session, "latest")
        assert (report.outcome, report.problems) == (CommandOutcome.DONE, ())
        assert report.backup
        assert (report.backup.file, report.backup.sha256) == (str(file), summary.sha256)
        remaining = await rotated.keys()
        del remaining[data_key_id(1)]
        await rotated.reset(remaining.values())
        report = await check_backup(session, file.name)
        assert report.outcome is CommandOutcome.FAILED
        assert [(each.id, "no longer in the keyring" in each.error) for each in report.problems] == [
            (data_key_id(1), True)
        ]
        await new_version()
        await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
        with pytest.raises(BackupError, match="KMS does not unwrap the key of the backup"):
            await check_backup(session, str(file))


async def test_restore_check_tries_the_version_that_the_data_keys_need(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await new_version()
    async with in_a_file.session() as session:
        await write_backup(session)  # its own key is wrapped by version 2, the data keys by version 1
        await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
        report = await check_backup(session, "latest")
    assert report.outcome is CommandOutcome.FAILED
    assert [problem.id for problem in report.problems] == [data_key_id(0)]
    assert "version 1 does not unwrap it: key_disabled" in report.problems[0].error


async def test_a_kms_that_refuses_the_backups_key_is_a_sentence(in_a_file: Rotated, emulator: Emulator) -> None:
    async with in_a_file.session() as session:
        emulator.faults.add(EmulatorFault(kind="denied"))
        with pytest.raises(BackupError, match="KMS does not wrap the backup's key: role_missing"):
            await write_backup(session)
        assert list(session.backups.folder.iterdir()) == []


async def test_any_number_of_data_keys_is_backed_up_and_checked_in_bounded_memory(
    in_a_file: Rotated,
) -> None:
    async with in_a_file.session() as session:
        first = (await session.administration.list_backup_rows())[0]

        async def rows(after: str = "", _limit: int = 0) -> list[StoredKey]:
            begin = int(after, 16) + 1 if after else 0
            numbers = range(begin, min(begin + MAX_PAGE_SIZE, DATA_KEYS))
            return [first.model_copy(update={"id": data_key_id(number)}) for number in numbers]

        session.administration.list_backup_rows = rows  # type: ignore[method-assign,assignment]
        tracemalloc.start()
        try:
            file, summary = await write_backup(session)
            assert await backups.read_whole_backup(file, session.wrapping) == summary
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert summary.data_keys == DATA_KEYS
    assert file.stat().st_size > 300 * DATA_KEYS
    assert peak < 8_000_000


async def test_restore_check_finds_a_data_key_that_is_another_one(in_a_file: Rotated) -> None:
    remaining = await in_a_file.keys()
    wrong = replace(remaining[data_key_id(0)], fingerprint=bytes(32))
    await in_a_file.reset([wrong, *(key for id_, key in remaining.items() if id_ != wrong.id)])
    async with in_a_file.session() as session:
        await write_backup(session)
        report = await check_backup(session, "latest")  # keyring and backup agree, and KMS does not
        assert [(each.id, each.error) for each in report.problems] == [
            (wrong.id, "version 1 does not unwrap it: its fingerprint differs")
        ]
        await in_a_file.reset(remaining.values())
        report = await check_backup(session, "latest")
    assert report.outcome is CommandOutcome.FAILED
    assert "it is not the one in the backup: its fingerprint differs" in {each.error for each in report.problems}


async def test_a_last_page_that_is_of_other_rows_is_noticed(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        file, summary = await write_backup(session)
        header = file.read_bytes().partition(b"\n")[0]
        wrapped = base64.b64decode(backups.read_header(file).wrapped)
        key = (await session.kms.decrypt(wrapped, b"keypulse backup\0one", timeout=SECONDS)).plaintext
        ((text, _), _) = backups.read_encrypted_pages(file, key)
        file.unlink()
        writer = backups.EncryptedFileWriter(file, header, key)
        writer.write_page(text)
        writer.finish(summary.model_copy(update={"data_keys": 4}).model_dump_json().encode())
        with pytest.raises(BackupError, match="holds other rows than its last page says"):
            await backups.read_whole_backup(file, session.wrapping)


async def test_whatever_another_program_wrote_into_a_row_can_be_backed_up_and_read(in_a_file: Rotated) -> None:
    async with in_a_file.session() as session:
        rows = list(await session.administration.list_backup_rows())
        rows[0] = rows[0].model_copy(update={"algorithm": 'AES\r\n"256",\r', "wrapped": "x" * 300_000})

        async def read_twice(after: str = "", _limit: int = 0) -> list[StoredKey]:
            return [row for row in rows if row.id > after]

        session.administration.list_backup_rows = read_twice  # type: ignore[method-assign,assignment]
        file, _ = await write_backup(session)
        assert await read(session, file) == rows


async def test_a_disk_that_keeps_another_backup_than_was_written_is_noticed_before_anything_is_changed(
    in_a_file: Rotated, new_version: NewVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await in_a_file.keys()
    await new_version()
    finish = EncryptedFileWriter.finish

    def cut(self: EncryptedFileWriter, plaintext: bytes) -> None:
        finish(self, plaintext)
        file = self._file
        file.write_bytes(file.read_bytes()[:-1])

    monkeypatch.setattr(EncryptedFileWriter, "finish", cut)
    async with in_a_file.session() as session:
        with pytest.raises(RotatorError, match="is damaged") as failed:
            await run(session, RotationType.REWRAP_KEK)
        assert failed.value.next_commands == ("run --type rewrap-kek",)
        assert list(session.backups.folder.iterdir()) == []
    assert await in_a_file.keys() == before
