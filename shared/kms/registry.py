"""The providers: one line each. Settings of a key are validated by the provider that they name.

It imports no provider's client library: the relay has none, and takes the commands of its messages from here.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Final, Union

from pydantic import (
    AfterValidator,
    Discriminator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from shared.kms.fixes import GENERIC_PROFILE, KmsProfile
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKeyAdmin
from shared.kms.settings import ProviderSettings
from shared.kms.transit.settings import TransitKeySettings

DEFAULT_PROVIDER: Final = "gcp"

providers: Final[dict[str, type[ProviderSettings]]] = {
    "gcp": GcpKeySettings,
    "transit": TransitKeySettings,
}
"""The settings of each provider, and with them its profile, by the name that stands in `provider`."""


def get_profile(provider: str) -> KmsProfile:
    """The profile of a provider; the generic one where there is none of this name."""
    settings = providers.get(provider)
    return settings.profile if settings else GENERIC_PROFILE


def parse_key_name(text: str) -> tuple[str, str] | None:
    """The key's full name and the version, empty where there is none, of a name in a spelling of any provider."""
    return next(filter(None, (each.profile.parse_key_name(text) for each in providers.values())), None)


def normalise_key_name(text: str) -> str:
    """The full name of the key in any spelling; another text stays as it is."""
    named = parse_key_name(text)
    return named[0] if named else text


def may_name(text: str, key: str) -> bool:
    """Whether a text may stand for this key: only the name of another one, of whatever provider, surely does not."""
    if text == key:
        return True
    named = parse_key_name(text)
    return named is None or named[0] == key


def may_be_same_key(one: str, other: str) -> bool:
    """Whether two full names may stand for one key."""
    return one == other or any(each.profile.may_be_same_key(one, other) for each in providers.values())


def connect_key(settings: ProviderSettings) -> KmsKeyAdmin:
    """The key behind the port. Connects at the first call, so a KMS that is down never prevents a start."""
    return settings.connect()


@asynccontextmanager
async def connect_keys(settings: Iterable[ProviderSettings]) -> AsyncIterator[Mapping[str, KmsKeyAdmin]]:
    """The keys by their full names, closed when the body is left."""
    keys = dict[str, KmsKeyAdmin]()
    async with AsyncExitStack() as stack:
        for each in settings:
            keys[each.key_name] = key = connect_key(each)
            stack.push_async_callback(key.close)
        yield keys


def validate_key_settings(value: object) -> ProviderSettings:
    """The settings of a key, by the provider that `value` names. Raises ValidationError, PydanticKnownError."""
    if isinstance(value, ProviderSettings):
        return value
    if not isinstance(value, Mapping):
        raise PydanticKnownError("dict_type")
    name = value.get("provider", DEFAULT_PROVIDER)
    settings = providers.get(name) if isinstance(name, str) else None
    if settings is None:
        expected = ", ".join(repr(each) for each in providers)
        context = {"discriminator": "'provider'", "tag": str(name), "expected_tags": expected}
        raise PydanticKnownError("union_tag_invalid", context)
    return settings.model_validate(value)


def build_union_schema() -> CoreSchema:
    """The schema of the discriminated union of all providers' settings."""
    members = tuple(providers.values())
    if len(members) == 1:
        return TypeAdapter(members[0]).core_schema
    union = Annotated[Union[members], Discriminator("provider")]  # type: ignore[valid-type]  # noqa: UP007  by value
    return TypeAdapter[Any](union).core_schema


class _ProviderUnion:
    """Resolves the union when a value is validated or the schema is printed, so a provider may be added at any time."""

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(validate_key_settings)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(build_union_schema())


KeySettings = Annotated[ProviderSettings, _ProviderUnion()]
"""The settings of a key of any provider: a discriminated union over `provider`."""


def _check_names(previous: tuple[ProviderSettings, ...], info: ValidationInfo) -> tuple[ProviderSettings, ...]:
    """By its name a data key finds what unwraps it."""
    names = [each.key_name for each in (*previous, *filter(None, [info.data.get("kms")]))]
    if len(names) > len(set(names)):
        raise ValueError(
            "expected each key once, and that of `kms` not at all; for the same path on two servers, set `server` of "
            "the new one"
        )
    return previous


PreviousKeySettings = Annotated[tuple[KeySettings, ...], AfterValidator(_check_names)]
"""The settings of the keys that only unwrap, beside a field `kms`."""
