"""Whom to turn to from a critical message: what a person may write of how somebody is reached."""

import re
from typing import Final

MAX_CONTACTS: Final = 10
MAX_CONTACT_LENGTH: Final = 200
"""Characters of a role, and of how it is reached."""


def parse_contact(value: object) -> object:
    """What stands in the file, nothing being empty text. Raises ValueError for a number, as YAML takes +49301234567."""
    if isinstance(value, (int, float)):
        raise ValueError("expected text in quotes, since YAML takes a telephone number for a number")  # noqa: TRY004  # pydantic reports ValueError
    return "" if value is None else value


def is_placeholder(address: str) -> bool:
    """Whether it reaches nobody: empty, or something to be filled in, such as `<telephone>`."""
    return re.fullmatch(r"(<.*>)?", address.strip(), re.DOTALL) is not None
