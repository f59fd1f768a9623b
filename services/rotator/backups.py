"""The folder of backups: names, which are kept, what they need, and whether one can be restored."""

import base64
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from services.rotator import backup
from services.rotator.backup import BackupError, Header, Summary
from services.rotator.model import RotatorError
from shared.keyring.administration import Administration, KeyInfo, Problem
from shared.keyring.model import UNREADABLE_VERSION, fingerprint, wrapping_aad
from shared.kms.provider import KeyProvider, KmsError

LATEST: Final = "latest"
_END: Final = ".backup"
_SHOWN: Final = 100
_NOTED: Final = re.compile(r"backup (?P<name>\S+) (?P<sha256>\S+)( needs (?P<needs>-?\d+(,\d+)*))?")


class Backups:
    """The backups in `state_dir`/backups. Raises RotatorError where the folder cannot be used."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "backups"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RotatorError(
                f"the folder {self.folder} cannot be made: {error.strerror}; set another `state_dir`", "plan"
            ) from None

    def new(self, rotation_id: str, now: datetime) -> Path:
        """Where a rotation's backup is written."""
        return self.folder / f"{rotation_id}.{now:%Y%m%dT%H%M%S.%fZ}{_END}"

    def kept(self) -> list[tuple[Path, Header]]:
        """All of them, the newest last. Raises BackupError, OSError."""
        found = [(file, backup.header(file)) for file in self.folder.glob(f"[!.]*{_END}")]
        return sorted(found, key=lambda each: each[1].created_at)

    def named(self, name: str, steps: Iterable[str] = ()) -> Path:
        """`latest`, a name in the folder, or a path. Raises BackupError where there is none.

        `latest` is that of the latest rotation, whose `steps` these are, where it is here; else the newest.
        """
        if name == LATEST:
            kept = [file for file, _ in self.kept()]
            if not kept:
                raise BackupError(f"there is no backup in {self.folder}")
            return next((file for each in noted(steps) if (file := self.folder / each.name) in kept), kept[-1])
        return next((file for file in (self.folder / name, Path(name)) if file.is_file()), Path(name))


class Noted(NamedTuple):
    """What the journal tells of a backup, wherever it is."""

    name: str
    sha256: str
    needs: frozenset[int] | None
    """Versions of the KMS key without which it cannot be read and restored; None where that was not noted."""

    def may_need(self, version: int) -> bool:
        """Whether it does, as far as is known."""
        return self.needs is None or not {version, UNREADABLE_VERSION}.isdisjoint(self.needs)


def note(file: Path, made: Summary) -> str:
    """What the journal is told of a backup that was just made, for `noted`. Raises BackupError."""
    header = backup.header(file)
    return f"{file.name} {made.sha256} needs {','.join(map(str, sorted({header.kek_version, *header.needs})))}"


def noted(steps: Iterable[str]) -> list[Noted]:
    """The backups that these steps of the journal tell of, the last one first."""
    found = [_NOTED.fullmatch(step) for step in steps]
    return [
        Noted(
            Path(each["name"]).name,
            each["sha256"],
            frozenset(map(int, each["needs"].split(","))) if each["needs"] else None,
        )
        for each in reversed(found)
        if each
    ]


async def check(file: Path, kms: KeyProvider, *, timeout: float) -> Summary:
    """What a backup holds, once all of it was read and compared. Raises BackupError."""
    counted = backup.Counted()
    async for _ in backup.pages(file, kms, counted, timeout=timeout):
        pass
    return counted.summary()


async def differences(file: Path, administration: Administration, kms: KeyProvider, *, timeout: float) -> list[Problem]:
    """Data keys of the backup that are gone, or are others by now: a hundred at most.

    Raises BackupError, AdministrationError.
    """
    found: list[Problem] = []
    async with aclosing(_keys(administration)) as keys:
        key = await anext(keys, None)
        async for rows in backup.pages(file, kms, backup.Counted(), timeout=timeout):
            for row in rows:
                while key is not None and key.id < row.id:
                    key = await anext(keys, None)
                if key is None or key.id != row.id:
                    found.append(Problem(id=row.id, why="it is in the backup, and no longer in the keyring"))
                elif key.fingerprint != row.fingerprint:
                    found.append(Problem(id=row.id, why="it is not the one in the backup: its fingerprint differs"))
                if len(found) == _SHOWN:
                    return found
    return found


async def unwrapped(file: Path, kms: KeyProvider, *, timeout: float) -> list[Problem]:
    """Unwraps one data key of each version, and gives those that it does not give back. Raises BackupError."""
    found: list[Problem] = []
    tried: set[tuple[str, int]] = set()
    kek = backup.header(file).kek
    async for rows in backup.pages(file, kms, backup.Counted(), timeout=timeout):
        for row in rows:
            if row.kek != kek or (row.kek, row.kek_version) in tried:
                continue
            tried.add((row.kek, row.kek_version))
            try:
                secret = await kms.decrypt(base64.b64decode(row.wrapped), wrapping_aad(row.id), timeout=timeout)
                wrong = "" if fingerprint(secret.plaintext).hex() == row.fingerprint else "its fingerprint differs"
            except KmsError as error:
                wrong = str(error)
            if wrong:
                found.append(Problem(id=row.id, why=f"version {row.kek_version} does not unwrap it: {wrong}"))
    return found


async def _keys(administration: Administration) -> AsyncGenerator[KeyInfo, None]:
    """All of them, a page at a time, in the order of their ids."""
    after = ""
    while page := await administration.keys(after):
        for key in page:
            yield key
        after = page[-1].id
