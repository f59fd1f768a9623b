"""A refused request of Transit → KmsError, by its status and its text: the server sends no code.

Every answer in causes.yml was seen on OpenBao 2.7.2; tests/shared/kms/transit/test_faults.py and
tests/exporter/test_transit_faults.py make them anew. Vault has the same texts, but for a bad token: `permission
denied`, then `invalid token` (https://github.com/hashicorp/vault/issues/26687).
"""

import re
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason
from shared.kms.transit.profile import AEAD_TYPES, CAUSES

_MAX_TEXT_LENGTH: Final = 500
_BAD_TOKEN: Final = re.compile(r"permission denied|.*invalid token.*", re.DOTALL)
"""Of a token that is not, or no more, known; where a policy lacks a capability, OpenBao writes "1 error occurred:"."""

_BY_ANSWER: Final = sorted(
    ((answer["status"], answer["text"], name) for name, row in CAUSES.items() for answer in row.get("answers", ())),
    key=lambda row: -len(row[1]),
)
"""Status, a part of the text, and what they mean; the first row counts. Any other answer is `unavailable`."""
_NO_AAD: Final = ("non-AEAD cipher suite", "missing 'context' for key derivation")
EXPECTED_TYPE: Final = f"expected a key that is not derived, of one of the types {', '.join(AEAD_TYPES)}"

M = TypeVar("M", bound=BaseModel)
D = TypeVar("D")


class Data(BaseModel, Generic[D]):
    """What an answer tells stands in `data`."""

    data: D


class _Errors(BaseModel):
    errors: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered."""

    status: int
    body: bytes
    retry_after: float | None = None
    """Seconds."""

    def parse(self, model: type[M]) -> M:
        """Of a success. Raises KmsError if its status is none, or its document is another."""
        if self.status != 200:
            raise parse_error(self)
        try:
            return model.model_validate_json(self.body)
        except ValidationError as error:
            where = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
            raise KmsError(
                Reason.UNAVAILABLE, f"the answer is not as expected at {where or 'its start'}", Cause.MALFORMED_ANSWER
            ) from None


def parse_error(answer: Answer) -> KmsError:
    """The failure that an answer with another status than 200 tells."""
    if 300 <= answer.status < 400:
        return KmsError(Reason.UNAVAILABLE, f"HTTP {answer.status}: the node sends on to another", Cause.STANDBY)
    try:
        text = " ".join(" ".join(_Errors.model_validate_json(answer.body).errors).split())[:_MAX_TEXT_LENGTH]
    except ValidationError:  # what stands before the server has other documents
        detail = f"HTTP {answer.status} without the server's errors: a proxy or gateway may say it"
        return KmsError(Reason.UNAVAILABLE, detail, Cause.MALFORMED_ANSWER)
    reason, cause = _find_cause(answer.status, text)
    expected = f"; {EXPECTED_TYPE}" if any(each in text for each in _NO_AAD) else ""
    detail = f"HTTP {answer.status}: {text or 'no text'}{expected}"
    return KmsError(reason, detail, cause, retry_after=answer.retry_after)


def _find_cause(status: int, text: str) -> tuple[Reason, Cause]:
    if status == 403:
        cause = Cause.TOKEN_EXPIRED if _BAD_TOKEN.fullmatch(text) else Cause.ROLE_MISSING
        return cause.reason, cause
    names = (name for by, part, name in _BY_ANSWER if status == by and part in text)
    found = next(names, Reason.UNAVAILABLE)
    return (found.reason, found) if isinstance(found, Cause) else (found, Cause.NONE)
