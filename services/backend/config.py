"""What a person may set of the backend."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from services.backend.local_key_file import read_or_create
from shared.config.file_checks import FileCheck, check_writable_folder
from shared.config.server_settings import AuthSettings, NamedToken, ServerSettings, check_unique_names
from shared.config.settings import Address, Duration, FilePath, ListenAddress, Section, TokenPath
from shared.kms.registry import KeySettings, PreviousKeySettings
from shared.sql.database_url import DatabaseSetting


def _check_local_key(file: Path) -> Iterable[Path]:
    if file.exists():
        read_or_create(file, may_create=False)  # which refuses one that others may read
    else:
        check_writable_folder(file.parent)
    return []


class AdminSettings(Section):
    """Who may call `/admin/crypto`."""

    token_file: TokenPath | None = None
    """One token a line, two while they are rotated; without a file and without `tokens` the admin API is off."""
    tokens: tuple[NamedToken, ...] = ()
    """Of further callers: a viewer reads, an admin does everything."""


class BackendSettings(ServerSettings):
    """Every setting of the backend."""

    service_name: ClassVar[str] = "backend"

    listen: ListenAddress = Address("127.0.0.1", 8000)
    database: DatabaseSetting
    kms: KeySettings
    previous_kms: PreviousKeySettings = ()
    """Keys that only unwrap, until `rewrap-kek` has moved every data key to `kms`."""
    admin: AdminSettings = AdminSettings()
    local_key_file: Annotated[FilePath, FileCheck(_check_local_key, "checks later")]
    """Made at the first start, the same for all instances of a database; wraps data keys in `env` mode."""
    kms_check_interval: Duration = Field(10.0, validate_default=False)
    kms_timeout: Duration = Field(2.0, validate_default=False)
    """Of one call. A check makes two; one that fails costs at most this."""

    @field_validator("admin")
    @classmethod
    def _check_unique_names(cls, admin: AdminSettings, info: ValidationInfo) -> AdminSettings:
        auth = info.data.get("auth", AuthSettings())
        others = [*(token.name for token in auth.tokens), *auth.roles]
        check_unique_names([*others, *(token.name for token in admin.tokens)])
        return admin

    def list_reserved_names(self) -> list[str]:
        return [*super().list_reserved_names(), *(token.name for token in self.admin.tokens)]
