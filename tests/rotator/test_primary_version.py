"""A new primary version is in use once Encrypt has answered with it as often as it has to, one after the other."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.rotator.report import RotatorError
from services.rotator.steps import wait_for_primary
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import EncryptResult, KmsError
from shared.kms.reason import Reason


class Answering:
    """A KMS whose Encrypt uses these versions, one after another, and the last one from then on; 0 is no answer."""

    profile = GCP_PROFILE

    def __init__(self, *versions: int) -> None:
        self.versions, self.calls = versions, 0

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:  # noqa: ARG002
        version = self.versions[min(self.calls, len(self.versions) - 1)]
        self.calls += 1
        if not version:
            raise KmsError(Reason.UNAVAILABLE, "out")
        return EncryptResult(b"", str(version), "SOFTWARE")


async def count_calls(kms: Answering) -> int:
    """How many answers it took."""
    settings = SimpleNamespace(primary_checks=3, primary_timeout=60, primary_check_interval=1, kms_timeout=5)
    session: Any = SimpleNamespace(settings=settings, kms=kms)
    await wait_for_primary(session, "2", "run")
    return kms.calls


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("versions", "calls"), [((2,), 3), ((1, 1, 2), 5), ((2, 2, 1, 2), 6), ((2, 2, 0, 2), 6), ((2, 1, 2, 0, 2), 7)]
)
async def test_an_older_version_in_between_or_no_answer_starts_the_count_again(
    versions: tuple[int, ...], calls: int
) -> None:
    assert await count_calls(Answering(*versions)) == calls


@pytest.mark.looptime
async def test_one_that_never_comes_ends_with_what_the_last_answer_was() -> None:
    message = r"not used version 2 3 times in a row within 60 s .*: version 1\).* needs minutes, rarely hours"
    with pytest.raises(RotatorError, match=message):
        await count_calls(Answering(2, 2, 1))
