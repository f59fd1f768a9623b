"""Backups: every data key's metadata and wrapped form as CSV, in encrypted pages, and the folder of these files.

The key of a file is random and wrapped by the same KMS key as the data keys. The first line, the header, says which
versions of it the backup needs, so that `retire` and `destroy` know. Each page is four bytes of length and its
ciphertext by AES-256-GCM. The nonce is the page's number, because a key encrypts one file only. The page's number, the
header's SHA-256 and whether it is the last page are authenticated: a page that is changed, moved, left out or taken
from another file is detected, and so is a file that ends too early. The last page has the SHA-256 of all rows.
"""

import asyncio
import base64
import csv
import errno
import io
import os
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from services.rotator.report import BackupSummary, RotatorError
from shared.atomic_file import sync_folder
from shared.config.file_checks import FileCheckError, check_writable_folder
from shared.keyring.administration import (
    Administration,
    JournalBackup,
    Problem,
    StoredKey,
    StoredVersion,
    list_pages,
)
from shared.keyring.model import UNREADABLE_VERSION, KeyringFingerprint, get_version_sort_key
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import KmsError, KmsKey
from shared.kms.reason import Scope
from shared.kms.registry import normalise_key_name

KEY_BYTES: Final = 32
_MAX_HEADER_BYTES: Final = 64 * 1024
MAX_PAGE_BYTES: Final = 16 * 1024 * 1024
_LENGTH_BYTES: Final = 4


class FileDamagedError(Exception):
    """The file is incomplete or changed; the message is one sentence."""


class EncryptedFileWriter:
    """Writes `file`, which is there as a whole after `finish`, or not at all. Every method may raise OSError."""

    def __init__(self, file: Path, header: bytes, key: bytes) -> None:
        """Begins beside `file`, readable by its owner only. `header` is one line; `key` is used for no other file."""
        self._file, self._temporary_file = file, file.with_name(f".{file.name}.part")
        self._cipher, self._header, self._page_number = AESGCM(key), header, 0
        self._temporary_file.unlink(missing_ok=True)  # of a runner that was killed
        self._stream = os.fdopen(os.open(self._temporary_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._stream.write(header + b"\n")

    def write_page(self, plaintext: bytes, *, last: bool = False) -> None:
        authenticated = _build_aad(self._header, self._page_number, last=last)
        ciphertext = self._cipher.encrypt(_build_nonce(self._page_number), plaintext, authenticated)
        self._stream.write(len(ciphertext).to_bytes(_LENGTH_BYTES, "big") + ciphertext)
        self._page_number += 1

    def finish(self, plaintext: bytes) -> None:
        """Adds the last page. The file has its name, and is on the disk, when this returns."""
        self.write_page(plaintext, last=True)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        if self._file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._temporary_file.rename(self._file)
        sync_folder(self._file.parent)

    def discard(self) -> None:
        """Leaves nothing of a file that is not finished."""
        with suppress(OSError):  # the rest of the buffer does not fit
            self._stream.close()
        self._temporary_file.unlink(missing_ok=True)


def read_encrypted_header(file: Path) -> bytes:
    """The first line. Raises FileDamagedError, OSError."""
    with file.open("rb") as stream:
        line = stream.readline(_MAX_HEADER_BYTES)
    if not line.endswith(b"\n"):
        raise FileDamagedError("it does not begin with a header")
    return line[:-1]


def read_encrypted_pages(file: Path, key: bytes) -> Iterator[tuple[bytes, bool]]:
    """Each page, and whether it is the last; all of them or FileDamagedError. Raises OSError."""
    cipher, first = AESGCM(key), read_encrypted_header(file)
    with file.open("rb") as stream:
        stream.seek(len(first) + 1)
        number, last = 0, False
        while not last:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "big")
            if not 0 < length <= MAX_PAGE_BYTES or len(ciphertext := stream.read(length)) < length:
                raise FileDamagedError(f"it ends in the middle, or page {number} is damaged")
            last = not stream.peek(1)
            try:
                yield cipher.decrypt(_build_nonce(number), ciphertext, _build_aad(first, number, last=last)), last
            except InvalidTag:
                raise FileDamagedError(f"page {number} is damaged, or the file was cut off after it") from None
            number += 1


def _build_nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _build_aad(header: bytes, number: int, *, last: bool) -> bytes:
    return sha256(header).digest() + number.to_bytes(8, "big") + bytes([last])


_AAD: Final = b"keypulse backup\0"
_CSV_COLUMNS: Final = tuple(StoredKey.model_fields)
csv.field_size_limit(MAX_PAGE_BYTES)
_CSV_HEADER: Final = ",".join(_CSV_COLUMNS).encode() + b"\n"


class BackupError(Exception):
    """A backup cannot be written or read; the message is one sentence for a person."""


class BackupHeader(BaseModel):
    """What can be known of a backup without its key. Forward compatible: fields only grow."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    keypulse_backup: Literal[1] = 1
    keyring: str
    """The id of the keyring that its data keys are of."""
    location: str
    """How the rotator reached that keyring, for a person."""
    rotation_id: str
    created_at: datetime
    kek: str
    kek_version: StoredVersion
    """The version of the KMS key without which the backup cannot be read."""
    needs: tuple[StoredVersion, ...]
    """Versions of the KMS key that wrap its data keys, and thus are needed to restore it."""
    other_keks: tuple[Annotated[str, AfterValidator(normalise_key_name)], ...] = ()
    """KMS keys that wrap some of its data keys as well, each by any version."""
    wrapped: str

    def may_need(self, version: str) -> bool:
        """Whether it needs that version, as far as is known."""
        return not {version, UNREADABLE_VERSION}.isdisjoint({self.kek_version, *self.needs})

    def get_journal_needs(self) -> tuple[str, ...]:
        """For a journal, which names versions and no key: of another key than `kek` it may need any."""
        unknown = {UNREADABLE_VERSION} if self.other_keks else set()
        return tuple(sorted({self.kek_version, *self.needs, *unknown}, key=get_version_sort_key))


class BackupOrigin(NamedTuple):
    """What a backup is of; the fields of `BackupHeader`."""

    keyring: str
    location: str
    rotation_id: str
    created_at: datetime


class SummaryBuilder:
    def __init__(self) -> None:
        self.data_keys, self._csv, self._keys = 0, sha256(), KeyringFingerprint()

    def add_page(self, rows: Sequence[StoredKey], text: bytes) -> None:
        """One page: the rows, and the same as CSV."""
        self.data_keys += len(rows)
        self._csv.update(text)
        for row in rows:
            self._keys.add(row.id, row.fingerprint)

    def build(self) -> BackupSummary:
        return BackupSummary(data_keys=self.data_keys, sha256=self._csv.hexdigest(), fingerprint=self._keys.hexdigest())


async def write_backup(
    file: Path,
    administration: Administration,
    wrapping: KeyWrapper,
    *,
    origin: BackupOrigin,
    needs: Collection[str],
    other_keks: Collection[str],
) -> BackupSummary:
    """Writes every data key into `file`, which is there as a whole afterwards, or not at all.

    Versions `needs` of the KMS key wrap the rows, and any of `other_keks`. Raises BackupError if the disk or KMS
    refuses, AdministrationError if the rows cannot be read.
    """
    key = os.urandom(KEY_BYTES)
    try:
        wrapped = await wrapping.kms.encrypt(key, _AAD + origin.rotation_id.encode(), timeout=wrapping.timeout)
    except KmsError as error:
        raise BackupError(f"KMS does not wrap the backup's key: {error}") from None
    header = BackupHeader(
        **origin._asdict(),
        kek=wrapping.kek,
        kek_version=wrapped.version,
        needs=tuple(sorted(needs, key=get_version_sort_key)),
        other_keks=tuple(sorted(other_keks)),
        wrapped=base64.b64encode(wrapped.ciphertext).decode(),
    )
    try:
        writer = await asyncio.to_thread(EncryptedFileWriter, file, header.model_dump_json().encode(), key)
        try:
            counted = SummaryBuilder()
            async for rows in list_pages(administration.list_backup_rows):
                text = (_CSV_HEADER if not counted.data_keys else b"") + _format_csv(rows)
                counted.add_page(rows, text)
                await asyncio.to_thread(writer.write_page, text)
            await asyncio.to_thread(writer.finish, counted.build().model_dump_json().encode())
        except BaseException:
            writer.discard()
            raise
    except OSError as error:
        raise BackupError(f"the backup cannot be written to {file.parent}: {error.strerror}") from None
    return counted.build()


def read_header(file: Path) -> BackupHeader:
    """Raises BackupError."""
    try:
        if file.exists() and not file.is_file():  # to open a FIFO would wait for its writer
            raise BackupError(f"{file} is no file, so it is no backup")
        return BackupHeader.model_validate_json(read_encrypted_header(file))
    except OSError as error:
        raise BackupError(f"the backup {file} cannot be read: {error.strerror}") from None
    except (FileDamagedError, ValidationError):
        raise BackupError(f"{file} is no backup of keypulse's, or its header is damaged") from None


async def may_be_wrapped_by(kms: KmsKey, header: BackupHeader, *, timeout: float) -> bool:
    """Whether this key wraps the file's key, whatever name the header has for it. Raises KmsError."""
    return await may_unwrap(_unwrap_file_key(header, kms, timeout))


async def may_unwrap(attempt: Awaitable[object]) -> bool:
    """Whether the attempt succeeds, or says nothing of the key: a version is disabled, say. Raises KmsError."""
    try:
        await attempt
    except ValueError:
        return True
    except KmsError as error:
        if error.transient or error.reason.scope not in {Scope.VERSION, Scope.CIPHERTEXT}:
            raise
        return error.reason.scope is Scope.VERSION
    return True


async def _unwrap_file_key(header: BackupHeader, kms: KmsKey, timeout: float) -> bytes:
    wrapped = base64.b64decode(header.wrapped, validate=True)
    return (await kms.decrypt(wrapped, _AAD + header.rotation_id.encode(), timeout=timeout)).plaintext


async def read_pages(file: Path, wrapping: KeyWrapper, summary: SummaryBuilder) -> AsyncIterator[tuple[StoredKey, ...]]:
    """The rows, a page at a time; each is added to `summary`, a new one.

    Raises BackupError if the file cannot be read, or is incomplete or changed; at the end at the latest.
    """
    first = await asyncio.to_thread(read_header, file)
    try:
        kms = wrapping.find_key(first.kek) or wrapping.kms
        read = read_encrypted_pages(file, await _unwrap_file_key(first, kms, wrapping.timeout))
        while page := await asyncio.to_thread(next, read, None):
            text, last = page
            if last:
                if BackupSummary.model_validate_json(text) != summary.build():
                    raise BackupError(f"the backup {file} holds other rows than its last page says")
                return
            rows = _parse_csv(text if summary.data_keys else text.partition(b"\n")[2])
            summary.add_page(rows, text)
            yield rows
    except KmsError as error:
        add = f"; {first.kek} wraps it: add that to `previous_kms`, or with the driver table set it as `kms`"
        by = "" if wrapping.find_key(first.kek) else add
        raise BackupError(f"KMS does not unwrap the key of the backup {file}: {error}{by}") from None
    except OSError as error:
        raise BackupError(f"the backup {file} cannot be read: {error.strerror}") from None
    except (FileDamagedError, ValueError, csv.Error) as error:
        cause = str(error) if isinstance(error, FileDamagedError) else "its content is not a backup's"
        raise BackupError(f"the backup {file} is damaged: {cause}") from None


def _format_csv(rows: Sequence[StoredKey]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a CR would end a row, too
    writer.writerows(row.model_dump(mode="json") for row in rows)
    return text.getvalue().encode()


def _parse_csv(text: bytes) -> tuple[StoredKey, ...]:
    return tuple(StoredKey.model_validate(row) for row in csv.DictReader(io.StringIO(text.decode()), _CSV_COLUMNS))


LATEST: Final = "latest"
_FILE_SUFFIX: Final = ".backup"
_MAX_DIFFERENCES: Final = 100


def check_state_folder(folder: Path) -> tuple[()]:
    """Open the folder, or the one in which a run makes it. Raises FileCheckError."""
    check_writable_folder(next(each for each in (folder, *folder.parents) if each.exists()))
    return ()


class BackupFolder:
    """The backups in `state_dir`/backups. Raises RotatorError where the folder cannot be used."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "backups"
        try:
            check_state_folder(state_dir)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileCheckError as error:
            raise RotatorError(f"state_dir: {error}", "plan") from None
        except OSError as error:
            raise RotatorError(
                f"the folder {self.folder} cannot be made: {error.strerror}; set another `state_dir`", "plan"
            ) from None

    def get_new_path(self, rotation_id: str, now: datetime) -> Path:
        return self.folder / f"{rotation_id}.{now:%Y%m%dT%H%M%S.%fZ}{_FILE_SUFFIX}"

    def list_backups(self) -> list[tuple[Path, BackupHeader]]:
        """All of them, the newest last. Raises BackupError, OSError."""
        found = [(file, read_header(file)) for file in self.folder.glob(f"[!.]*{_FILE_SUFFIX}")]
        return sorted(found, key=lambda each: each[1].created_at)

    def find(self, name: str, keyring: str | None, latest: Iterable[JournalBackup] = ()) -> Path:
        """`latest`, a name in the folder, or a path. Raises BackupError where there is none of this keyring.

        The name `latest` means the first backup in `latest`, of the latest rotation, that exists; otherwise the newest.
        """
        if name == LATEST:
            files = [file for file, header in self.list_backups() if header.keyring == keyring]
            if not files:
                raise BackupError(f"there is no backup of this keyring in {self.folder}")
            return next((file for backup in latest if (file := self.folder / backup.name) in files), files[-1])
        file = next((file for file in (self.folder / name, Path(name)) if file.is_file()), Path(name))
        header = read_header(file)
        if header.keyring != keyring:
            raise BackupError(
                f"the backup {file} is of the keyring {header.keyring} at {header.location}, and `driver` leads to "
                f"{keyring or 'one without backups'}; nothing was changed; use the configuration of that keyring"
            )
        return file


async def read_whole_backup(file: Path, wrapping: KeyWrapper) -> BackupSummary:
    """What a backup holds, once all of it was read and compared. Raises BackupError."""
    counted = SummaryBuilder()
    async for _ in read_pages(file, wrapping, counted):
        pass
    return counted.build()


async def compare_with_keyring(file: Path, administration: Administration, wrapping: KeyWrapper) -> list[Problem]:
    """Data keys of the backup that are gone, or are others by now: a hundred at most.

    Raises BackupError, AdministrationError.
    """
    found: list[Problem] = []
    async with aclosing(key async for page in list_pages(administration.list_keys) for key in page) as keys:
        key = await anext(keys, None)
        async for rows in read_pages(file, wrapping, SummaryBuilder()):
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
