"""A verification through a service's admin API: by pages, so that no call lasts as long as the keyring is large."""

from typing import Any

import pytest

from services.rotator.drivers.admin_api import AdminRequest, AdminResponse, RemoteAdministration
from services.rotator.verification import verify_by_pages
from shared.keyring.administration import Problem, UnreachableError, VerificationResult


class Service:
    """Answers a verification's pages as it was told to, and keeps what it was asked."""

    def __init__(self, *pages: VerificationResult) -> None:
        self.pages = list(pages)
        self.requests: list[Any] = []

    async def send(self, question: AdminRequest) -> AdminResponse:
        self.requests.append(question.body)
        return AdminResponse(200, self.pages.pop(0).model_dump_json().encode())


def page(following: str | None, *problems: Problem, fingerprint: str = "") -> VerificationResult:
    return VerificationResult(data_keys=2, records=3, problems=problems, fingerprint=fingerprint, next=following)


async def test_each_page_is_a_call_and_problems_of_our_own_come_first() -> None:
    ours, foreign = Problem(id="z", error="w"), Problem(id="a", error="w", is_foreign=True)
    service = Service(page("b", foreign), page("d"), page(None, ours, fingerprint="f"))
    whole = await verify_by_pages(RemoteAdministration("there", service.send), "sample")
    assert [(body["mode"], body["after"]) for body in service.requests] == [
        ("sample", ""),
        ("sample", "b"),
        ("sample", "d"),
    ]
    assert whole == VerificationResult(data_keys=6, records=9, problems=(ours, foreign), fingerprint="f")


async def test_pages_that_lead_in_a_circle_end_with_a_sentence() -> None:
    service = Service(page("b"), page("b"))
    with pytest.raises(UnreachableError, match="the service's verification does not go on after data key b"):
        await verify_by_pages(RemoteAdministration("there", service.send), "full")
