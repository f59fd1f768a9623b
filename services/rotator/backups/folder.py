"""The folder of backups: names, which are kept, what they need, and whether one can be restored."""

import base64
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Final

from services.rotator.backups import backup_file
from services.rotator.backups.backup_file import BackupError, BackupHeader, BackupSummary
from services.rotator.model import RotatorError
from shared.keyring.administration import Administration, JournalBackup, KeyInfo, Problem
from shared.keyring.model import compute_fingerprint
from shared.kms.port import KmsError, KmsKey

LATEST: Final = "latest"
_FILE_SUFFIX: Final = ".backup"
_MAX_DIFFERENCES: Final = 100


class BackupFolder:
    """The backups in `state_dir`/backups. Raises RotatorError where the folder cannot be used."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "backups"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RotatorError(
                f"the folder {self.folder} cannot be made: {error.strerror}; set another `state_dir`", "plan"
            ) from None

    def get_new_path(self, rotation_id: str, now: datetime) -> Path:
        """Where a rotation's backup is written."""
        return self.folder / f"{rotation_id}.{now:%Y%m%dT%H%M%S.%fZ}{_FILE_SUFFIX}"

    def list_backups(self) -> list[tuple[Path, BackupHeader]]:
        """All of them, the newest last. Raises BackupError, OSError."""
        found = [(file, backup_file.read_header(file)) for file in self.folder.glob(f"[!.]*{_FILE_SUFFIX}")]
        return sorted(found, key=lambda each: each[1].created_at)

    def find(self, name: str, latest: Iterable[JournalBackup] = ()) -> Path:
        """`latest`, a name in the folder, or a path. Raises BackupError where there is none.

        The name `latest` means the first backup in `latest`, of the latest rotation, that exists; otherwise the newest.
        """
        if name == LATEST:
            files = [file for file, _ in self.list_backups()]
            if not files:
                raise BackupError(f"there is no backup in {self.folder}")
            return next((file for backup in latest if (file := self.folder / backup.name) in files), files[-1])
        return next((file for file in (self.folder / name, Path(name)) if file.is_file()), Path(name))


async def read_whole_backup(file: Path, kms: KmsKey, *, timeout: float) -> BackupSummary:
    """What a backup holds, once all of it was read and compared. Raises BackupError."""
    counted = backup_file.SummaryBuilder()
    async for _ in backup_file.read_pages(file, kms, counted, timeout=timeout):
        pass
    return counted.build()


async def compare_with_keyring(
    file: Path, administration: Administration, kms: KmsKey, *, timeout: float
) -> list[Problem]:
    """Data keys of the backup that are gone, or are others by now: a hundred at most.

    Raises BackupError, AdministrationError.
    """
    found: list[Problem] = []
    async with aclosing(_list_keys(administration)) as keys:
        key = await anext(keys, None)
        async for rows in backup_file.read_pages(file, kms, backup_file.SummaryBuilder(), timeout=timeout):
            for row in rows:
                while key is not None and key.id < row.id:
                    key = await anext(keys, None)
                if key is None or key.id != row.id:
                    found.append(Problem(id=row.id, error="it is in the backup, and no longer in the keyring"))
                elif key.fingerprint != row.fingerprint:
                    found.append(Problem(id=row.id, error="it is not the one in the backup: its fingerprint differs"))
                if len(found) == _MAX_DIFFERENCES:
                    return found
    return found


async def find_unwrap_failures(file: Path, kms: KmsKey, *, timeout: float) -> list[Problem]:
    """Unwraps one data key of each version, and gives those that it does not give back. Raises BackupError."""
    found: list[Problem] = []
    checked: set[tuple[str, str]] = set()
    kek = backup_file.read_header(file).kek
    async for rows in backup_file.read_pages(file, kms, backup_file.SummaryBuilder(), timeout=timeout):
        for row in rows:
            if row.kek != kek or (row.kek, row.kek_version) in checked:
                continue
            checked.add((row.kek, row.kek_version))
            try:
                secret = await kms.decrypt(base64.b64decode(row.wrapped), row.wrapping_aad, timeout=timeout)
                failure = (
                    "" if compute_fingerprint(secret.plaintext).hex() == row.fingerprint else "its fingerprint differs"
                )
            except KmsError as error:
                failure = str(error)
            if failure:
                found.append(Problem(id=row.id, error=f"version {row.kek_version} does not unwrap it: {failure}"))
    return found


async def _list_keys(administration: Administration) -> AsyncGenerator[KeyInfo, None]:
    """All of them, a page at a time, in the order of their ids."""
    after = ""
    while page := await administration.list_keys(after):
        for key in page:
            yield key
        after = page[-1].id
