"""What Google answered instead of doing it → of what kind that is, and a sentence that says what to do. Pure."""

from enum import Enum, auto
from typing import Final

from ops.audit.permissions import build_permission_hint

LOGIN_HINT: Final = "log in with `gcloud auth application-default login`, or name a file in GOOGLE_APPLICATION_CREDENTIALS"
RUN_AGAIN_HINT: Final = "run this again: it goes on where it stopped"


class ErrorKind(Enum):
    """Of what kind a refusal is, for whoever can do something about it."""

    MISSING = auto()
    CONFLICT = auto()
    """It has changed since it was read, or is there already."""
    INVALID = auto()
    FAILED = auto()


_KINDS: Final = {400: ErrorKind.INVALID, 404: ErrorKind.MISSING, 409: ErrorKind.CONFLICT, 412: ErrorKind.CONFLICT}


class GoogleError(Exception):
    """Google has not done what it was asked for.

    Args:
        kind: of the refusal.
        message: what was refused and what to do; no secret.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def is_transient(status: int, reasons: set[str]) -> bool:
    """Whether it may pass by itself; BigQuery and Cloud Storage have rate limits that answer 403."""
    return status == 429 or status >= 500 or "rateLimitExceeded" in reasons


def build_error(name: str, status: int, google_message: str, reasons: set[str]) -> GoogleError:
    """What an answer means.

    Args:
        name: of API and method.
        status: of HTTP.
        google_message: Google's own words.
        reasons: Google's words for machines.
    """
    kind, api = _KINDS.get(status, ErrorKind.FAILED), name.partition(".")[0]
    if status == 401:
        return GoogleError(kind, f"the credentials are not taken; {LOGIN_HINT}")
    if is_transient(status, reasons):
        return GoogleError(kind, f"{name} still fails with {status} ({google_message}); wait a minute and {RUN_AGAIN_HINT}")
    if "quota project" in google_message:  # whoever is logged in as a person has to say who pays for the calls
        todo = "say which with `gcloud auth application-default set-quota-project PROJECT`"
    elif reasons & {"SERVICE_DISABLED", "accessNotConfigured"}:
        todo = f"switch the API on with `gcloud services enable {api}.googleapis.com`, and wait a minute"
    elif status == 403:
        todo = build_permission_hint(name)
    else:
        todo = "look whether the names are right"
    return GoogleError(kind, f"{name} is refused with {status} ({google_message}); {todo}")
