"""The service's local key, as its database knows it: by a fingerprint, so that no second one ever wraps a data key.

Two instances with different local keys would each depose what the other made, and one lost disk would take half of the
records. So the first one is stored, and another replaces it only if nothing needs it and no other instance is alive.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from shared.keyring import store
from shared.keyring.administration import MAX_PAGE_SIZE, RefusedError
from shared.keyring.instance_readiness import InstanceHeartbeat, are_others_alive
from shared.keyring.model import LOCAL_KEK, DataKey
from shared.keyring.store import OtherLocalKeyError, read_local_key_fingerprint
from shared.keyring.tables import abandoned_data_keys, data_keys, local_key


def list_locally_wrapped_keys(connection: Connection, limit: int = MAX_PAGE_SIZE) -> tuple[DataKey, ...]:
    """The first data keys that a local key wraps."""
    return store.list_data_keys(connection, "", limit, data_keys.c.kek == LOCAL_KEK)


def may_replace_local_key(connection: Connection, now: float, instance: str) -> bool:
    """Whether a new local key may take the place of the one that is known: nothing and nobody needs that."""
    fingerprint_in_use = read_local_key_fingerprint(connection)
    return not list_locally_wrapped_keys(connection, 1) and (
        fingerprint_in_use is None or not are_others_alive(connection, now, instance)
    )


def register_local_key(connection: Connection, now: float, heartbeat: InstanceHeartbeat, fingerprint: bytes) -> None:
    """Stores the fingerprint of an instance's local key, which is alive from then on. Raises OtherLocalKeyError."""
    registered = read_local_key_fingerprint(connection)
    if registered not in (None, fingerprint) and not may_replace_local_key(connection, now, heartbeat.instance):
        raise OtherLocalKeyError
    connection.execute(local_key.delete())
    connection.execute(local_key.insert().values(singleton=1, fingerprint=fingerprint))
    heartbeat.write_row(connection, now, ())


def abandon_data_keys(connection: Connection, now: float, instance: str, keys: Sequence[DataKey]) -> int:
    """Puts data keys aside; how many, for one that is no longer wrapped as in `keys` is left alone.

    Once none is left that a local key wraps, another may be stored: see `may_replace_local_key`.

    Raises:
        RefusedError: another instance than `instance` is alive: it may have the local key, or hold a data key and write
            by it.
    """
    if are_others_alive(connection, now, instance):
        raise RefusedError(
            "another instance of the service is alive, and may have the local key",
            "put its file back from there, or stop all other instances. One that was killed counts as alive for three "
            "of its check intervals, at least 10 seconds",
        )
    return sum(_abandon_data_key(connection, now, key) for key in keys)


def _abandon_data_key(connection: Connection, now: float, key: DataKey) -> bool:
    condition = (data_keys.c.id == key.id) & (data_keys.c.wrapped == key.wrapped.ciphertext)
    if connection.execute(select(data_keys.c.id).where(condition)).first() is None:
        return False
    connection.execute(abandoned_data_keys.delete().where(abandoned_data_keys.c.id == key.id))
    values = {
        "id": key.id,
        "wrapped": key.wrapped.ciphertext,
        "kek": key.wrapped.kek,
        "kek_version": key.wrapped.kek_version,
        "algorithm": key.algorithm,
        "fingerprint": key.fingerprint,
        "created_at": key.created_at.timestamp(),
        "abandoned_at": now,
    }
    connection.execute(abandoned_data_keys.insert().values(**values))
    connection.execute(data_keys.delete().where(condition))
    return True
