"""What harmless calls show of a silent denial → its cause, and how many were made for it."""

import pytest

from shared.kms.denial import Finding, diagnose_denial
from shared.kms.port import KmsError, Question
from shared.kms.reason import Cause, Reason

USE, GET = "use", "get"
SILENT = KmsError(Reason.PERMISSION_DENIED, "denied", Cause.ROLE_MISSING, is_silent=True)
PERIMETER = KmsError(Reason.PERMISSION_DENIED, "prohibited by policy", Cause.PERIMETER, {"troubleshooter_id": "x"})
NO_ROLE = KmsError(Reason.PERMISSION_DENIED, "get denied", Cause.ROLE_MISSING)
MISSING = KmsError(Reason.KEY_NOT_FOUND, "not found")
AWAY = KmsError(Reason.TIMEOUT, "no answer")
UNRESTRICTED, ENABLED = Finding("no policy"), Finding("ENABLED")
JUSTIFIED = Finding("a policy", Cause.JUSTIFICATION, "probably the policy")
DISABLED = Finding("DISABLED", Cause.API_DISABLED, "the API is disabled")
P, K, S = Question


@pytest.mark.parametrize(
    ("granted", "key", "service", "cause", "text", "asked"),
    [
        ({GET}, UNRESTRICTED, ENABLED, Cause.ROLE_MISSING, "use is not granted on the key", [P]),
        ({GET}, JUSTIFIED, DISABLED, Cause.ROLE_MISSING, "use is not granted", [P]),
        (set(), SILENT, ENABLED, Cause.ROLE_MISSING, "its role is missing, or the key does not exist", [P, K]),
        (set(), NO_ROLE, ENABLED, Cause.ROLE_MISSING, "or the key does not exist", [P, K]),
        (set(), JUSTIFIED, ENABLED, Cause.ROLE_MISSING, "no permission is granted on the key", [P, K]),
        (set(), AWAY, ENABLED, Cause.ROLE_MISSING, "or the key does not exist", [P, K]),
        (set(), MISSING, ENABLED, Cause.NONE, "the key does not exist", [P, K]),
        (MISSING, SILENT, ENABLED, Cause.NONE, "the key does not exist", [P]),
        ({USE, GET}, JUSTIFIED, ENABLED, Cause.JUSTIFICATION, "probably the policy", [P, K]),
        ({USE, GET}, UNRESTRICTED, DISABLED, Cause.API_DISABLED, "the API is disabled", [P, K, S]),
        ({USE}, JUSTIFIED, DISABLED, Cause.API_DISABLED, "the API is disabled", [P, S]),
        ({USE, GET}, UNRESTRICTED, ENABLED, Cause.NONE, "use is granted: probably a deny policy", [P, K, S]),
        ({USE, GET}, SILENT, AWAY, Cause.NONE, "use is granted: probably a deny policy", [P, K, S]),
        ({USE, GET}, PERIMETER, ENABLED, Cause.PERIMETER, "probably as another call says: prohibited", [P, K]),
        (PERIMETER, UNRESTRICTED, ENABLED, Cause.PERIMETER, "probably as another call says: prohibited", [P]),
        (SILENT, SILENT, AWAY, Cause.NONE, "needs no permission is denied: probably a perimeter", [P, K, S]),
        (SILENT, JUSTIFIED, ENABLED, Cause.JUSTIFICATION, "probably the policy", [P, K]),
        (AWAY, AWAY, AWAY, Cause.NONE, "the permissions could not be read: a role may be missing", [P, K, S]),
        (AWAY, NO_ROLE, AWAY, Cause.NONE, "the permissions could not be read", [P, K, S]),
        (AWAY, UNRESTRICTED, DISABLED, Cause.API_DISABLED, "the API is disabled", [P, K, S]),
    ],
)
async def test_the_cause_follows_from_what_is_certain_before_what_is_concluded(
    granted: set[str] | KmsError,
    key: Finding | KmsError,
    service: Finding | KmsError,
    cause: Cause,
    text: str,
    asked: list[Question],
) -> None:
    async def check_permissions() -> frozenset[str]:
        if isinstance(granted, KmsError):
            raise granted
        return frozenset(granted)

    async def find(finding: Finding | KmsError) -> Finding:
        if isinstance(finding, KmsError):
            raise finding
        return finding

    diagnosis = await diagnose_denial(
        USE, check_permissions, lambda: find(key), lambda: find(service), key_permission=GET
    )
    assert diagnosis.cause is cause
    assert text in diagnosis.text
    assert [answer.question for answer in diagnosis.answers] == asked
    named = PERIMETER.values if cause is Cause.PERIMETER else {}
    assert diagnosis.values == {**named, "permission": USE}, "what the commands need"
    assert "role_missing: denied" not in str(diagnosis.answers)


@pytest.mark.parametrize(
    ("granted", "cause"), [({USE}, Cause.NONE), ({GET}, Cause.ROLE_MISSING), (set(), Cause.ROLE_MISSING)]
)
async def test_a_provider_that_has_permissions_alone_is_asked_once(granted: set[str], cause: Cause) -> None:
    async def check_permissions() -> frozenset[str]:
        return frozenset(granted)

    diagnosis = await diagnose_denial(USE, check_permissions)
    assert (diagnosis.cause, len(diagnosis.answers)) == (cause, 1)


async def test_a_provider_that_names_no_permission_is_never_said_to_lack_a_certain_one() -> None:
    async def check_permissions() -> frozenset[str]:
        return frozenset({USE})

    assert (await diagnose_denial("", check_permissions)).cause is Cause.NONE
