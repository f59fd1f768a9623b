"""The lease of a rotation: one runner at a time may change the keyring. The database stores it, and its clock counts.

A runner that was killed blocks others until its lease expires. One that was suspended for longer can write nothing
more: each of its writes checks its token first, in the same transaction.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import Connection

from shared.keyring.administration import Lease, RefusedError
from shared.keyring.database import Database
from shared.keyring.tables import rotation_lease
from shared.sql.rows import select_rows

MAX_LEASE_SECONDS: Final = 3600.0
"""Seconds of a lease, at most: nobody waits longer for a runner that was killed."""
T = TypeVar("T")


class _LeaseRow(NamedTuple):
    holder: str
    token: bytes
    expires_at: float


_LEASES: Final = select_rows(_LeaseRow, rotation_lease.c)


def acquire_lease(connection: Connection, now: float, holder: str, seconds: float, token: str = "") -> Lease:
    """Acquires a lease that is free or expired, or renews the caller's own. Raises RefusedError."""
    if not 0 < seconds <= MAX_LEASE_SECONDS:
        raise RefusedError(f"a lease may last up to {MAX_LEASE_SECONDS:g} s", "request that, and renew it")
    current = _LEASES.fetch_first(connection)
    if current and not _is_valid_token(current, token):
        if now < current.expires_at <= now + MAX_LEASE_SECONDS:  # a later end was set by a clock that was ahead
            raise RefusedError(_describe_holder(current))
        token = ""
    elif not current:
        token = ""  # it was released in the meantime
    token = token or secrets.token_urlsafe(32)
    connection.execute(rotation_lease.delete())
    expires_at = now + seconds
    connection.execute(
        rotation_lease.insert().values(singleton=1, holder=holder, token=_hash_token(token), expires_at=expires_at)
    )
    return Lease(holder=holder, token=token, expires_at=datetime.fromtimestamp(expires_at, UTC))


def release_lease(connection: Connection, token: str) -> None:
    """Releases the lease; does nothing if it belongs to another runner."""
    connection.execute(rotation_lease.delete().where(rotation_lease.c.token == _hash_token(token)))


def get_holder(connection: Connection) -> str:
    """Who has the lease, or had it last; empty if there was none."""
    current = _LEASES.fetch_first(connection)
    return current.holder if current else ""


async def run_under_lease(database: Database, token: str, work: Callable[[Connection, float], T]) -> T:
    """Runs `work`, with the connection and the time, and returns its result once it is committed.

    Raises DatabaseError, and RefusedError if the lease belongs to another runner or has expired.
    """

    def change(connection: Connection) -> T:
        now = database.read_clock(connection)
        current = _LEASES.fetch_first(connection)
        if current is None or not _is_valid_token(current, token):
            who = f"; {_describe_holder(current)}" if current and current.expires_at > now else ""
            raise RefusedError(f"the lease is not yours{who}", "take it, then resume")
        if current.expires_at <= now:
            raise RefusedError(f"the lease ended at {_format_time(current.expires_at)}", "take it again, then resume")
        return work(connection, now)

    return await database.write_exclusively(change)


def _describe_holder(current: _LeaseRow) -> str:
    return f"{current.holder} holds the lease until {_format_time(current.expires_at)}"


def _is_valid_token(current: _LeaseRow, token: str) -> bool:
    return hmac.compare_digest(current.token, _hash_token(token))


def _hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _format_time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")
