"""`page_size` and `page_token` of the List methods. Pure."""

import base64
from collections.abc import Sequence
from typing import TypeVar

from google.cloud import kms_v1 as kms

from ops.kms_emulator.status import invalid_argument, unimplemented

DEFAULT_PAGE = 100
MAX_PAGE = 1000

T = TypeVar("T")
ListRequest = kms.ListKeyRingsRequest | kms.ListCryptoKeysRequest | kms.ListCryptoKeyVersionsRequest


def paginate(items: Sequence[T], request: ListRequest) -> tuple[Sequence[T], str]:
    """The items of the page that `request` asks for, and the token of the next one: empty after the last."""
    if request.filter or request.order_by:
        raise unimplemented("The emulator lists everything in its own order: leave filter and order_by empty.")
    if request.page_size < 0:
        raise invalid_argument(f"The page_size [{request.page_size}] is negative.")
    start = _decode_token(request.page_token)
    end = start + min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    return items[start:end], _encode_token(end) if end < len(items) else ""


def _encode_token(offset: int) -> str:
    return base64.urlsafe_b64encode(str(offset).encode()).decode()


def _decode_token(token: str) -> int:
    if not token:
        return 0
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except ValueError:  # binascii.Error and UnicodeError among them
        text = ""
    if not text.isdecimal() or len(text) > 18:  # Python itself refuses to read a number of thousands of digits
        raise invalid_argument(f"The page_token [{token}] is not one that this service gave.")
    return int(text)
