"""What a person may set of the backend."""

from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from shared.kms.settings import KeySettings
from shared.planned import planned
from shared.settings import Address, Duration, FilePath, ListenAddress, Section, ServerSettings


def parse_sqlite_url(value: object) -> object:
    """`sqlite:////DIR/FILE` → its path; `sqlite:///FILE` starts at the configuration file's folder."""
    if not isinstance(value, str):
        return value
    file = value.removeprefix("sqlite:///")
    if file in (value, "", ":memory:") or "?" in file:
        raise ValueError("expected sqlite:////DIR/FILE; no other database is supported")
    return file


class Admin(Section):
    """Who may call `/admin/crypto`."""

    token_file: FilePath | None = None


class Settings(ServerSettings):
    """Every setting of the backend."""

    service_name: ClassVar[str] = "backend"

    listen: ListenAddress = Address("127.0.0.1", 8000)
    database: Annotated[FilePath, BeforeValidator(parse_sqlite_url, json_schema_input_type=str)]
    kms: KeySettings
    admin: Admin | None = planned(None)
    local_key_file: FilePath
    """Made at the first start; wraps data keys in `env` mode."""
    kms_check_interval: Duration = 10.0
    kms_timeout: Duration = 2.0
    """Of one call. A check makes two; one that fails costs at most this."""
