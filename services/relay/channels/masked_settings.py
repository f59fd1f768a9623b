"""The settings of a channel for a person, without a secret: a secret stands in a file, which is named by its path.

An address may be a secret itself, or hold one in its path: of an address only scheme, host and port are shown, unless
it is the provider's own, as documented.
"""

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.relay.channels.port import ChannelSettings, MessageRate
from services.relay.channels.provider_call import MASK

SettingValue = str | int | float | bool | list[str]
"""A value as a person, or JSON, reads it."""
_UNITS: Final = (("s", 1.0), ("m", 60.0), ("h", 3600.0))


def mask_settings(settings: ChannelSettings) -> dict[str, SettingValue]:
    """Each key that has a value, as in the configuration's file; those that the file sets come first."""
    fields = type(settings).model_fields
    names = sorted(fields, key=lambda name: (name != "kind", name not in settings.model_fields_set))
    values = {name: getattr(settings, name) for name in names}
    return {
        fields[name].alias or name: _mask_value(value, fields[name].default)
        for name, value in values.items()
        if value is not None
    }


def list_default_keys(settings: ChannelSettings) -> frozenset[str]:
    """The keys that the configuration's file leaves as they are."""
    fields = type(settings).model_fields
    return frozenset(field.alias or name for name, field in fields.items() if name not in settings.model_fields_set)


def mask_url(url: str) -> str:
    """An address without what may be a secret: its user, its path, its query and its fragment."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    has_more = parts.path.strip("/") or parts.query or parts.fragment
    return f"{parts.scheme}://{address}" + (f"/{MASK}" if has_more else "")


def format_rate(per_second: float) -> str:
    """A rate as in the configuration, such as `1/s` or `45/m`."""
    unit, seconds = next(
        ((unit, seconds) for unit, seconds in _UNITS if (per_second * seconds).is_integer()), _UNITS[-1]
    )
    return f"{per_second * seconds:g}/{unit}"


def _mask_value(value: object, default: object) -> SettingValue:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, MessageRate):
        return format_rate(value.per_second)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return mask_url(value) if "://" in value and value != default else value
    if isinstance(value, (tuple, list)):
        return [str(_mask_value(each, None)) for each in value]
    return MASK  # of a type that nothing is known of
