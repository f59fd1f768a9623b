"""YAML file + environment → a pydantic model, or one readable line for each error.

Every value may also come from the environment (`KEYPULSE_RELAY__DELIVERY__TIMEOUT=5s`), which wins over the file.
Unknown keys and placeholders of examples are refused. Relative paths are taken from the configuration file's folder, as
Prometheus does. Errors never repeat a URL: it may hold a password or a token.
"""

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared.config import yaml_file
from shared.config.errors import ConfigurationError, describe_unknown_key, format_errors
from shared.config.file_checks import (
    PASSWORD_FILE_CHECK,
    SECRET_FILE_CHECK,
    TOKEN_FILE_CHECK,
    FileCheck,
    create_secret_check,
)
from shared.config.secret_file import SecretFile

_PLACEHOLDERS: Final = frozenset({"acme", "example"})


def is_placeholder_host(host: str) -> bool:
    """Whether a part of the host is `acme` or `example`, such as in example.org or api.acme.com."""
    return not _PLACEHOLDERS.isdisjoint(host.lower().rstrip(".").split("."))


def is_placeholder_url(url: str) -> bool:
    """Whether its host is a placeholder, or the account at the beginning of its path, as in github.com/acme/ops."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return is_placeholder_host(host) or not _PLACEHOLDERS.isdisjoint(parts.path.lower().split("/")[1:2])


def is_placeholder_mailbox(mailbox: str) -> bool:
    """Whether the domain of a mail address is one; a name may stand before the address."""
    return is_placeholder_host(mailbox.rpartition("@")[2].strip("<> "))


_base_folder: ContextVar[Path] = ContextVar("_folder", default=Path())
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = TypeAdapter(ByteSize)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")


class Address(NamedTuple):
    """Where a server listens, or is reached."""

    host: str
    port: int

    def __str__(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it. A name other than `localhost` counts as the network."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(value: object) -> Address:
    """`HOST:PORT` → Address; ValueError says what was expected."""
    if isinstance(value, tuple):
        return Address(*value)
    host, _, port = str(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:9912")
    return Address(host, int(port))


def parse_duration(value: object) -> float:
    """`30s`, `5m`, `1h30m`, `500ms` → seconds. Raises ValueError, also for a number without a unit, but for 0."""
    text = str(value)
    if isinstance(value, bool) or not (_DURATION.fullmatch(text) or _NUMBER.fullmatch(text)):
        raise ValueError("expected a duration such as 30s, 5m or 1h30m")
    if _NUMBER.fullmatch(text) and float(text):
        raise ValueError("expected a duration with its unit, such as 30s, 5m or 1h30m")
    return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([\d.]+)(ms|s|m|h|d)", text))


def parse_size(value: object) -> object:
    """`512KiB`, `16MiB`, `1GiB` → bytes; a bare number is bytes."""
    try:
        return int(_SIZE.validate_python(value))
    except ValidationError:
        raise ValueError("expected a size such as 512KiB, 16MiB or 1GiB") from None


def _parse_network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("expected a network without host bits, such as 10.0.0.0/8") from None


def resolve_path(path: Path) -> Path:
    """Return the path for this process: a relative one starts at the configuration file's folder."""
    if "\0" in str(path):
        raise ValueError("expected a path; a NUL character can stand in none")
    return _base_folder.get() / path


# NoDecode: from the environment it comes as the same HOST:PORT; pydantic-settings would want a tuple as JSON.
ListenAddress = Annotated[Address, NoDecode, BeforeValidator(parse_address, json_schema_input_type=str)]
Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network, PlainValidator(_parse_network, json_schema_input_type=str)
]
"""A network in CIDR notation."""
Duration = Annotated[
    float,
    BeforeValidator(parse_duration, json_schema_input_type=str),
    Field(gt=0, allow_inf_nan=False),
]
"""Seconds, written as `30s`, `5m` or `1h30m`. A default is a number of seconds, which is not validated."""
Interval = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str | Literal[0])]
"""Seconds, written as a duration; 0 is never."""
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=str | int), Field(gt=0)]
"""Bytes, written as `512KiB`, `16MiB` or `1GiB`."""
FilePath = Annotated[Path, AfterValidator(resolve_path)]
"""A path; a relative one starts at the configuration file's folder."""
TokenPath = Annotated[FilePath, TOKEN_FILE_CHECK]
"""Of tokens that the server itself checks."""
SecretPath = Annotated[FilePath, SECRET_FILE_CHECK]
"""Of a secret that is sent to others."""
PasswordPath = Annotated[FilePath, PASSWORD_FILE_CHECK]
"""Of a password that is sent to others."""


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CommandSettings(BaseSettings):
    """The configuration of a command. `service_name` is the middle of the environment prefix."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_nested_delimiter="__")
    service_name: ClassVar[str]
    first_configuration: ClassVar[str] = "docs/configuration/{service}.md has one to begin with"
    """Where to get a first configuration, for who gives none."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose content comes in as arguments."""
        del env_settings, dotenv_settings, file_secret_settings
        return EnvSettingsSource(settings_cls, env_prefix=get_env_prefix(cls)), init_settings


S = TypeVar("S", bound=CommandSettings)


def get_env_prefix(model: type[CommandSettings]) -> str:
    """The prefix of a command's environment variables, such as `KEYPULSE_RELAY__`."""
    return f"KEYPULSE_{model.service_name.upper()}__"


def load_settings(model: type[S], file: Path | None) -> S:
    """Read a YAML file; None takes defaults and the environment only. Raises ConfigurationError with all errors."""
    with use_base_folder(file.parent.resolve() if file else Path.cwd()):
        document = yaml_file.read_yaml(file) if file else {}
        variables = {name: _get_field_name(model, name) for name in _list_variables(model)}
        errors = [
            f"{name}: {describe_unknown_key(field, model.model_fields)}"
            for name, field in variables.items()  # pydantic-settings passes over those that set nothing
            if field not in model.model_fields
        ]
        try:
            settings = model(**document)
        except ValidationError as error:
            if file is None and not variables:
                first = model.first_configuration.format(service=model.service_name)
                raise ConfigurationError([f"no configuration; expected --config FILE; {first}"]) from None
            cut_off = yaml_file.find_cut_off_values(file) if file else frozenset()
            errors += format_errors(model, get_env_prefix(model), file, error, cut_off)
        except SettingsError as error:
            # Its text names the field, as in: error parsing value for field "kms" from source "EnvSettingsSource".
            field = str(error).partition('"')[2].partition('"')[0]
            errors.append(f"{get_env_prefix(model)}{field.upper()}: expected JSON for a list or a mapping")
        if errors:
            raise ConfigurationError(errors)
        return settings


def _list_variables(model: type[CommandSettings]) -> list[str]:
    """The environment variables with the command's prefix."""
    return [name for name in os.environ if name.upper().startswith(get_env_prefix(model))]


def _get_field_name(model: type[CommandSettings], variable: str) -> str:
    return variable[len(get_env_prefix(model)) :].lower().partition("__")[0]


@contextmanager
def use_base_folder(folder: Path) -> Iterator[None]:
    """Within it, a relative path of a configuration starts at `folder`."""
    token = _base_folder.set(folder)
    try:
        yield
    finally:
        _base_folder.reset(token)


def check_http_url(url: str) -> str:
    """Return the URL if an HTTP client can use it. Raises ValueError with what was expected."""
    _split(url, "expected an http:// or https:// URL without spaces and line breaks")
    return url


def check_base_url(url: str, *, allow_user: bool = False) -> str:
    """Return the URL, to which paths are appended, without its last slash. Raises ValueError with what was expected."""
    without = "a query" if allow_user else "a user, a password or a query"
    expected = f"expected a URL such as https://HOST, without {without}"
    parts = _split(url, expected)
    if parts.query or parts.fragment or (parts.username is not None and not allow_user):
        raise ValueError(expected)
    return url.rstrip("/")


def check_secret_url(url: str, *, allow_remote_insecure: bool | None = None) -> str:
    """Return the URL if secrets are safe in transit: https, or http on this machine, or where that is allowed.

    It may hold a secret in its path or query, but no user. Raises ValueError with what was expected.

    Args:
        url: to check.
        allow_remote_insecure: the setting of that name beside the URL; None where there is none.
    """
    expected = "expected a URL such as https://HOST/PATH, without a user or a password"
    parts = _split(url, expected)
    if parts.username is not None:
        raise ValueError(expected)
    is_exposed = parts.scheme == "http" and not Address(parts.hostname or "", 0).is_loopback
    if is_exposed and not allow_remote_insecure:
        what, way_out = "the secret", ""
        if allow_remote_insecure is not None:
            what, way_out = "alerts and secrets", "; or set `allow_remote_insecure: true`"
        why = f"because http:// would send {what} in plaintext beyond this machine"
        raise ValueError(f"expected https://, {why}{way_out}")
    return url


def _check_provider_url(url: str, info: ValidationInfo) -> str:
    return check_secret_url(url, allow_remote_insecure=info.data.get("allow_remote_insecure"))


def _split(url: str, expected: str) -> SplitResult:
    if not url.isprintable() or " " in url:  # urlsplit drops some of them
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise ValueError(expected)
    try:
        host.encode("idna")  # as every lookup of a name does
    except UnicodeError:
        raise ValueError("expected a host whose parts between the dots have 1 to 63 characters each") from None
    return parts


_EXPECTED_URL_FILE: Final = "expected a file with the URL on its first line"
UrlFilePath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_URL_FILE, check_http_url))]
"""A file with the URL of an HTTP server, which is a secret itself; `--check` checks its shape."""
HttpUrl = Annotated[str, AfterValidator(check_http_url)]
"""Any URL of an HTTP server."""
BaseUrl = Annotated[str, AfterValidator(check_base_url)]
"""A URL to which paths are appended."""
PageLinks = dict[Annotated[str, Field(min_length=1, max_length=40)], BaseUrl]
"""Links to other pages, by their text."""
ProviderUrl = Annotated[str, AfterValidator(_check_provider_url)]
"""Where a provider is reached: https, or http on this machine, or anywhere with `allow_remote_insecure` beside it."""
