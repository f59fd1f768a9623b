"""A backup: every data key's metadata and wrapped form as CSV, encrypted, with the SHA-256 of it all in the last page.

The key of the file is random and wrapped by the same KMS key as the data keys. The header says which versions of it the
backup needs, so that `retire` and `destroy` know.
"""

import asyncio
import base64
import csv
import io
import os
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from services.rotator.backups import encrypted_pages
from shared.keyring.administration import Administration, StoredKey, StoredVersion
from shared.keyring.model import UNREADABLE_VERSION, get_version_sort_key
from shared.kms.port import KmsError, KmsKey
from shared.kms.reason import Scope

_AAD: Final = b"keypulse backup\0"
_CSV_COLUMNS: Final = tuple(StoredKey.model_fields)
csv.field_size_limit(encrypted_pages.MAX_PAGE_BYTES)
_CSV_HEADER: Final = ",".join(_CSV_COLUMNS).encode() + b"\n"


class BackupError(Exception):
    """A backup cannot be written or read; the message is one sentence for a person."""


class BackupHeader(BaseModel):
    """What can be known of a backup without its key. Forward compatible: fields only grow."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    keypulse_backup: Literal[1] = 1
    rotation_id: str
    created_at: datetime
    kek: str
    kek_version: StoredVersion
    """The version of the KMS key without which the backup cannot be read."""
    needs: tuple[StoredVersion, ...]
    """Versions of the KMS key that wrap its data keys, and thus are needed to restore it."""
    wrapped: str
    """Base64 of the file's key, wrapped."""

    def may_need(self, version: str) -> bool:
        """Whether it needs that version, as far as is known."""
        return not {version, UNREADABLE_VERSION}.isdisjoint({self.kek_version, *self.needs})


class BackupSummary(BaseModel):
    """What a backup holds."""

    model_config = ConfigDict(frozen=True)

    data_keys: int
    sha256: str
    """Of the CSV, hexadecimal."""
    fingerprint: str
    """Of all its data keys by id, as `Verification` has it."""


class SummaryBuilder:
    """A summary that grows by pages."""

    def __init__(self) -> None:
        self.data_keys, self._csv, self._keys = 0, sha256(), sha256()

    def add_page(self, rows: Sequence[StoredKey], text: bytes) -> None:
        """One page: the rows, and the same as CSV."""
        self.data_keys += len(rows)
        self._csv.update(text)
        for row in rows:
            self._keys.update(f"{row.id} {row.fingerprint}\n".encode())

    def build(self) -> BackupSummary:
        """Of all pages so far."""
        return BackupSummary(data_keys=self.data_keys, sha256=self._csv.hexdigest(), fingerprint=self._keys.hexdigest())


async def write_backup(  # noqa: PLR0913  most by name
    file: Path,
    administration: Administration,
    kms: KmsKey,
    *,
    rotation_id: str,
    kek: str,
    needs: Collection[str],
    now: datetime,
    timeout: float,
) -> BackupSummary:
    """Writes every data key into `file`, which is there as a whole afterwards, or not at all.

    Args:
        file: in a folder that exists.
        administration: gives the rows, a page at a time.
        kms: wraps the file's key.
        kek: full name of that KMS key.
        rotation_id: for whose sake.
        needs: versions of the KMS key that wrap the rows.
        now: aware.
        timeout: seconds of one call to KMS.

    Raises:
        BackupError: the disk or KMS refuses.
        AdministrationError: the rows cannot be read.
    """
    key = os.urandom(encrypted_pages.KEY_BYTES)
    try:
        wrapped = await kms.encrypt(key, _AAD + rotation_id.encode(), timeout=timeout)
    except KmsError as error:
        raise BackupError(f"KMS does not wrap the backup's key: {error}") from None
    header = BackupHeader(
        rotation_id=rotation_id,
        created_at=now,
        kek=kek,
        kek_version=wrapped.version,
        needs=tuple(sorted(needs, key=get_version_sort_key)),
        wrapped=base64.b64encode(wrapped.ciphertext).decode(),
    )
    try:
        writer = await asyncio.to_thread(
            encrypted_pages.EncryptedFileWriter, file, header.model_dump_json().encode(), key
        )
        try:
            counted = SummaryBuilder()
            async for rows in _list_stored_keys(administration):
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
        return BackupHeader.model_validate_json(encrypted_pages.read_header(file))
    except OSError as error:
        raise BackupError(f"the backup {file} cannot be read: {error.strerror}") from None
    except (encrypted_pages.FileDamagedError, ValidationError):
        raise BackupError(f"{file} is no backup of keypulse's, or its header is damaged") from None


async def may_be_wrapped_by(kms: KmsKey, header: BackupHeader, *, timeout: float) -> bool:
    """Whether this key wraps the file's key, by whatever name the header calls it. Raises KmsError."""
    try:
        await _unwrap_file_key(header, kms, timeout)
    except ValueError:
        return True
    except KmsError as error:
        if error.reason.transient or error.reason.scope not in {Scope.VERSION, Scope.CIPHERTEXT}:
            raise
        return error.reason.scope is Scope.VERSION
    return True


async def _unwrap_file_key(header: BackupHeader, kms: KmsKey, timeout: float) -> bytes:
    wrapped = base64.b64decode(header.wrapped, validate=True)
    return (await kms.decrypt(wrapped, _AAD + header.rotation_id.encode(), timeout=timeout)).plaintext


async def read_pages(
    file: Path, kms: KmsKey, summary: SummaryBuilder, *, timeout: float
) -> AsyncIterator[tuple[StoredKey, ...]]:
    """The rows, a page at a time; the end verifies that they are complete and unchanged.

    Args:
        file: the backup.
        kms: unwraps the file's key.
        summary: a new one, which each page is added to.
        timeout: seconds of the call to KMS.

    Raises:
        BackupError: it cannot be read, or is incomplete or changed; at the end at the latest.
    """
    first = await asyncio.to_thread(read_header, file)
    try:
        read = encrypted_pages.read_pages(file, await _unwrap_file_key(first, kms, timeout))
        while page := await asyncio.to_thread(next, read, None):
            text, last = page
            if last:
                if BackupSummary.model_validate_json(text) != summary.build():
                    raise BackupError(f"the backup {file} holds other rows than its last page says")
                return
            rows = _parse_csv(text if summary.data_keys else text.partition(b"\n")[2])  # older ones have fewer columns
            summary.add_page(rows, text)
            yield rows
    except KmsError as error:
        raise BackupError(f"KMS does not unwrap the key of the backup {file}: {error}") from None
    except OSError as error:
        raise BackupError(f"the backup {file} cannot be read: {error.strerror}") from None
    except (encrypted_pages.FileDamagedError, ValueError, csv.Error) as error:
        cause = str(error) if isinstance(error, encrypted_pages.FileDamagedError) else "its content is not a backup's"
        raise BackupError(f"the backup {file} is damaged: {cause}") from None


async def _list_stored_keys(administration: Administration) -> AsyncIterator[Sequence[StoredKey]]:
    after = ""
    while rows := await administration.list_backup_rows(after):
        yield rows
        after = rows[-1].id


def _format_csv(rows: Sequence[StoredKey]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)  # a CR would end a row, too
    writer.writerows(row.model_dump(mode="json") for row in rows)
    return text.getvalue().encode()


def _parse_csv(text: bytes) -> tuple[StoredKey, ...]:
    return tuple(StoredKey.model_validate(row) for row in csv.DictReader(io.StringIO(text.decode()), _CSV_COLUMNS))
