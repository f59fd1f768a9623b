"""A backup can be read back, whatever stands in its rows, or nothing is changed."""

import pytest

from services.rotator.backups import EncryptedFileWriter
from services.rotator.report import RotatorError
from services.rotator.runner import run
from shared.keyring.administration import RotationType, StoredKey
from tests.rotator.backups.test_backup_file import read
from tests.rotator.keyring_to_rotate import NewVersion, Rotated, write_backup


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
