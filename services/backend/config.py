"""What a person may set of the backend."""

from typing import ClassVar

from shared.kms.settings import KeySettings
from shared.settings import Address, Duration, FilePath, ListenAddress, Section, ServerSettings
from shared.sql.setting import Database


class Admin(Section):
    """Who may call `/admin/crypto`."""

    token_file: FilePath | None = None
    """One token a line, two while they are rotated; without a file the admin API is off."""


class Settings(ServerSettings):
    """Every setting of the backend."""

    service_name: ClassVar[str] = "backend"

    listen: ListenAddress = Address("127.0.0.1", 8000)
    database: Database
    kms: KeySettings
    admin: Admin = Admin()
    local_key_file: FilePath
    """Made at the first start, the same for all instances of a database; wraps data keys in `env` mode."""
    kms_check_interval: Duration = 10.0
    kms_timeout: Duration = 2.0
    """Of one call. A check makes two; one that fails costs at most this."""
