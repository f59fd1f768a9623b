"""What the board says of a key or a backend: its light, what is wrong, what to do. The runbook has what it names."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from services.exporter.history import History
from services.exporter.model import (
    Call,
    CanaryResult,
    Failure,
    KeyInspection,
    Operation,
    ProbeResult,
    TargetKey,
)
from services.exporter.web import findings
from services.exporter.web.board import (
    Card,
    MaxAges,
    build_card,
)
from services.exporter.web.findings import HealthStatus
from shared.kms.fixes import GENERIC_ADVICE, GENERIC_PROFILE
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import ConnectivityPhase, KeyDescription, KeyVersion, VersionState
from shared.kms.reason import Cause, Reason

KEY: Final = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
NOW: Final = 10_000.0
STALE: Final = 100.0
MAX_AGE: Final = MaxAges(STALE, success=math.inf)
ROOT: Final = Path(__file__).parents[2]
RUNBOOK: Final = ROOT / findings.RUNBOOK_FILE
SUCCEEDED: Final = Call(Operation.ENCRYPT, 0.01)


class Key:
    """One key, as it is told."""

    def __init__(self) -> None:
        self.history = History(clock=lambda: NOW)
        self.history.configure({("ledger", "ledger-kek"): TargetKey("gcp", KEY, GCP_PROFILE)}, ["ledger"])
        self.record = self.history.targets["ledger-kek"]

    def probe(
        self, call: Call = SUCCEEDED, *, connectivity: tuple[ConnectivityPhase, ...] = (), level: str | None = None
    ) -> "Key":
        self.history.add_probe(ProbeResult("ledger", "ledger-kek", NOW, (call,), None, level, connectivity))
        return self

    def fails(self, reason: Reason, *connectivity: ConnectivityPhase, cause: Cause = Cause.NONE) -> "Key":
        failure = Failure(reason, "said", cause=cause, values={"troubleshooter_id": "aBc-1"})
        return self.probe(Call(Operation.ENCRYPT, 0.01, failure), connectivity=connectivity)

    def read(
        self,
        description: KeyDescription | None = None,
        permissions: dict[str, bool] | None = None,
        canaries: tuple[CanaryResult, ...] = (),
        wrong_aad: Call | None = None,
        problems: tuple[str, ...] = (),
        account: str = "",
    ) -> "Key":
        snapshot = KeyInspection(
            "ledger", "ledger-kek", NOW, description, permissions, canaries, wrong_aad, {}, problems
        )
        snapshot = replace(snapshot, account=account)
        self.history.add_inspection(snapshot)
        return self

    def head(self, now: float = NOW) -> Card:
        return build_card(self.record, now, MAX_AGE)


def advice(reason: Reason) -> findings.Advice:
    return findings.Advice(GCP_PROFILE.advise(reason), reason)


def list_findings(card: Card) -> list[tuple[HealthStatus, str, str]]:
    return [(finding.status, finding.title, finding.text) for finding in card.findings]


def lost(version: str, reason: Reason) -> CanaryResult:
    return CanaryResult(version, Call(Operation.CANARY_DECRYPT, 0.01, Failure(reason, f"of {version}")))


def version(number: int, destroy_at: float | None = None) -> KeyVersion:
    state = VersionState.USABLE if destroy_at is None else VersionState.PENDING_DESTRUCTION
    return KeyVersion(str(number), state, "HSM", destroy_at)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_sentence_and_what_to_do(reason: Reason) -> None:
    card = Key().fails(reason).head()
    assert list_findings(card) == [(HealthStatus.FAILING, f"{reason} at encrypt", "said")]
    assert card.findings[0].advice == advice(reason)
    assert card.announcement == f"ledger-kek: Failing, {reason} at encrypt"


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause])
def test_a_cause_comes_first_and_has_its_own_sentence(cause: Cause) -> None:
    (finding,) = Key().fails(cause.reason, cause=cause).head().findings
    assert finding.title == f"{cause} ({cause.reason}) at encrypt"
    assert finding.advice == findings.Advice(GCP_PROFILE.advise(cause.reason, cause), "What a cause means")


def test_the_troubleshooter_is_opened_with_the_id_that_the_service_named() -> None:
    (finding,) = Key().fails(Reason.PERMISSION_DENIED, cause=Cause.PERIMETER).head().findings
    (fix,) = finding.fixes
    assert "https://console.cloud.google.com/security/service-perimeter/troubleshoot;uniqueId=aBc-1" in fix.command


def test_a_result_that_is_too_old_is_a_finding_whatever_it_was() -> None:
    for key, light in ((Key().probe(), HealthStatus.DEGRADED), (Key().fails(Reason.TIMEOUT), HealthStatus.FAILING)):
        assert all(title != "no recent result" for _, title, _ in list_findings(key.head(NOW + STALE)))
        card = key.head(NOW + STALE + 1)
        assert card.status is light
        assert "no recent result" in [title for _, title, _ in list_findings(card)]


def test_broken_connectivity_shows_that_it_is_the_network_and_working_connectivity_that_it_is_not() -> None:
    dns, tcp = ConnectivityPhase("dns", 0.002), ConnectivityPhase("tcp", 0.004, "refused")
    (broken,) = Key().fails(Reason.UNAVAILABLE, dns, tcp).head().findings
    assert broken.connectivity == "It is the network, at TCP: refused (before it: DNS 2 ms)"
    assert broken.advice == advice(Reason.UNAVAILABLE)
    (whole,) = (
        Key()
        .fails(Reason.UNAVAILABLE, dns, ConnectivityPhase("tcp", 0.004), ConnectivityPhase("tls", 0.03))
        .head()
        .findings
    )
    assert whole.connectivity == "The network works (DNS 2 ms, TCP 4 ms, TLS 30 ms): it is KMS that does not answer."
    assert whole.advice == advice(Reason.UNAVAILABLE)
    (measured,) = Key().fails(Reason.UNAVAILABLE).head().findings
    assert measured.connectivity is None


def test_no_canary_counts_as_lost_while_round_trips_fail_as_well() -> None:
    key = Key().probe().read(canaries=(lost("1", Reason.KEY_DISABLED),))
    assert [title for _, title, _ in list_findings(key.head())] == ["canary lost, key_disabled"]
    titles = [title for _, title, _ in list_findings(key.fails(Reason.KEY_DISABLED).head())]
    assert set(titles) == {"canary not decrypted, key_disabled", "key_disabled at encrypt"}


def test_lost_canaries_are_one_finding_for_each_reason() -> None:
    canaries = tuple(lost(str(n), Reason.KEY_DISABLED) for n in range(9, 1, -1))
    card = Key().probe().read(canaries=(*canaries, lost("1", Reason.UNAVAILABLE), CanaryResult("10", SUCCEEDED))).head()
    assert list_findings(card) == [
        (
            HealthStatus.FAILING,
            "canary lost, key_disabled",
            "What versions 9, 8, 7, 6, 5 and 3 more encrypted cannot be decrypted: of 9",
        ),
        (
            HealthStatus.DEGRADED,
            "canary not decrypted, unavailable",
            "What version 1 encrypted cannot be decrypted: of 1",
        ),
    ]
    assert [finding.advice for finding in card.findings] == [
        findings.ADVICE["canary_lost"],
        advice(Reason.UNAVAILABLE),
    ]
    assert card.since_label == "round trips succeed since"


def test_a_wrong_aad_that_is_not_refused_is_a_failure() -> None:
    call = Call(Operation.DECRYPT, 0.01, Failure(Reason.PLAINTEXT_MISMATCH, "not refused"))
    assert list_findings(Key().probe().read(wrong_aad=call).head()) == [
        (HealthStatus.FAILING, "wrong AAD accepted", "not refused")
    ]
    assert Key().probe().read(wrong_aad=SUCCEEDED).head().status is HealthStatus.HEALTHY


def test_scheduled_destructions_are_one_finding_with_the_first_date() -> None:
    described = KeyDescription("3", None, (version(3), version(1, 20_000.0), version(2, 15_000.0)), 2)
    (found,) = Key().probe().read(described).head().findings
    assert (found.status, found.text, found.due_at) == (
        HealthStatus.DEGRADED,
        "Versions 1, 2 will be destroyed, the first",
        15_000.0,
    )


def test_missing_permissions_a_late_rotation_and_what_could_not_be_read_need_attention() -> None:
    card = (
        Key()
        .probe()
        .read(KeyDescription("1", NOW - 1, (), 1), {"a.get": True, "a.use": False}, problems=("one", "two"))
        .head()
    )
    assert list_findings(card) == [
        (HealthStatus.DEGRADED, "permission missing", "The account lacks a.use."),
        (
            HealthStatus.DEGRADED,
            "rotation overdue",
            "The key was to be rotated at 1970-01-01 02:46:39 UTC; gcloud kms keys describe shows its schedule.",
        ),
        (HealthStatus.DEGRADED, "not all could be read or kept", "one; two"),
    ]
    assert card.status is HealthStatus.DEGRADED
    assert Key().probe().read(KeyDescription("1", NOW, (), 1)).head().status is HealthStatus.HEALTHY


def test_what_several_reads_say_alike_is_said_once() -> None:
    away = "unavailable: failed to connect: Connection refused"
    problems = (f"the key cannot be read: {away}", "no room", f"its permissions cannot be read: {away}", "full: disk")
    (finding,) = list_findings(Key().probe().read(problems=problems).head())
    together = f"the key cannot be read; its permissions cannot be read: {away}"
    assert finding[1:] == ("not all could be read or kept", f"{together}; no room; full: disk")


def test_advice_about_a_role_or_credentials_applies_to_those_that_never_were() -> None:
    reasons = (Reason.PERMISSION_DENIED, Reason.UNAUTHENTICATED)
    texts = [profile.advise(reason) for profile in (GCP_PROFILE, GENERIC_PROFILE) for reason in reasons]
    of_role = GCP_PROFILE.advise(Reason.PERMISSION_DENIED, Cause.ROLE_MISSING)
    assert [text for text in (*texts, of_role) if "again" in text] == []


def test_a_card_has_the_commands_of_its_key_that_fix_it() -> None:
    def list_commands(key: Key) -> list[str]:
        return [fix.command for finding in key.head().findings for fix in finding.fixes]

    of_key = "--project=demo --location=global --keyring=app --key=ledger"
    described = KeyDescription("3", None, (version(2, destroy_at=NOW + 60), version(3)), 2)
    commands = list_commands(Key().read(described).fails(Reason.KEY_DISABLED))
    assert commands[0].startswith("gcloud logging read --project=demo"), "who changed it comes first"
    assert commands[1] == f"gcloud kms keys versions enable 3 {of_key}", "the primary version: it encrypts"
    assert f"gcloud kms keys versions restore 2 {of_key}" in commands, "the one that will be destroyed"
    *_, grant = list_commands(Key().read(permissions={"cloudkms.cryptoKeys.get": False}, account="me@example.org"))
    assert grant.endswith('--role=roles/cloudkms.viewer --member="serviceAccount:me@example.org"')
    _, restore, *_ = list_commands(Key().read(canaries=(lost("1", Reason.KEY_DESTROYED),)))
    assert restore == f"gcloud kms keys versions restore 1 {of_key}"
    assert list_commands(Key().probe()) == []


def advices() -> set[findings.Advice]:
    of_cause = findings.advise_on_failure(Failure(Reason.UNAVAILABLE, "", cause=Cause.TLS), GCP_PROFILE)
    assert of_cause.anchor == "what-a-cause-means"
    return {*findings.ADVICE.values(), *map(advice, Reason), of_cause}


def test_every_section_that_is_named_stands_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert set(GENERIC_ADVICE) >= set(Reason)
    named = RUNBOOK.read_text(encoding="utf-8").partition("### What a cause means")[2]
    assert [cause for cause in Cause if cause and f"`{cause}`" not in named] == []
    assert len(advices()) > len(Reason) + 5
    for advised in advices():
        assert anchors.count(advised.anchor) == 1  # GitHub gives the second of two equal headings another anchor
