"""What the board says of a key or a backend: its light, what is wrong, what to do. The runbook has what it names."""

import math
import re
from pathlib import Path
from typing import Final

import pytest

from services.exporter.history import History
from services.exporter.model import BackendState, Call, Canary, Failure, Health, KeySnapshot, Operation, ProbeResult
from services.exporter.web import advice
from services.exporter.web.cards import Head, MaxAge, Record, canaries, head, protection, versions
from services.exporter.web.findings import LOST, Light
from shared.contract import CryptoMode
from shared.kms.provider import KeyDescription, KeyVersion, Phase
from shared.kms.reason import Reason

NOW: Final = 10_000.0
STALE: Final = 100.0
OVERDUE: Final = 60.0
MAX_AGE: Final = MaxAge(STALE, overdue=math.inf)
ROOT: Final = Path(__file__).parents[2]
RUNBOOK: Final = ROOT / advice.RUNBOOK
WELL: Final = Call(Operation.ENCRYPT, 0.01)


class Key:
    """One key, as it is told."""

    def __init__(self) -> None:
        self.history = History(clock=lambda: NOW)
        self.history.keep([("ledger", "ledger-kek")], ["ledger"])
        self.record = self.history.targets["ledger-kek"]

    def probe(self, call: Call = WELL, *, way: tuple[Phase, ...] = (), level: str | None = None) -> "Key":
        self.history.probe(ProbeResult("ledger", "ledger-kek", NOW, (call,), None, level, way))
        return self

    def fails(self, reason: Reason, *way: Phase) -> "Key":
        return self.probe(Call(Operation.ENCRYPT, 0.01, Failure(reason, "said")), way=way)

    def read(
        self,
        description: KeyDescription | None = None,
        permissions: dict[str, bool] | None = None,
        kept: tuple[Canary, ...] = (),
        wrong_aad: Call | None = None,
        problems: tuple[str, ...] = (),
    ) -> "Key":
        snapshot = KeySnapshot("ledger", "ledger-kek", NOW, description, permissions, kept, wrong_aad, {}, problems)
        self.history.lifecycle(snapshot)
        return self

    def head(self, now: float = NOW) -> Head:
        return head(self.record, now, MAX_AGE)


def told(shown: Head) -> list[tuple[Light, str, str]]:
    return [(finding.light, finding.title, finding.sentence) for finding in shown.findings]


def lost(version: str, reason: Reason) -> Canary:
    return Canary(version, Call(Operation.CANARY_DECRYPT, 0.01, Failure(reason, f"of {version}")))


def version(number: int, destroy_at: float | None = None) -> KeyVersion:
    state = "ENABLED" if destroy_at is None else "DESTROY_SCHEDULED"
    return KeyVersion(str(number), state, "HSM", destroy_at)


def test_nothing_known_is_no_news_and_no_alarm() -> None:
    assert (Key().head().light, Key().head().findings) == (Light.UNKNOWN, ())


def test_a_right_round_trip_is_well() -> None:
    assert (Key().probe().head().light, Key().probe().head().findings) == (Light.WELL, ())


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_sentence_and_what_to_do(reason: Reason) -> None:
    shown = Key().fails(reason).head()
    assert told(shown) == [(Light.FAILING, f"{reason} at encrypt", "said")]
    assert shown.findings[0].advice is advice.BY_REASON[reason]
    assert shown.said == f"ledger-kek: Failing, {reason} at encrypt"


def test_news_that_are_old_are_said_to_be_whatever_they_are() -> None:
    for key, light in ((Key().probe(), Light.ATTENTION), (Key().fails(Reason.TIMEOUT), Light.FAILING)):
        assert all(title != "no news" for _, title, _ in told(key.head(NOW + STALE)))
        shown = key.head(NOW + STALE + 1)
        assert shown.light is light
        assert "no news" in [title for _, title, _ in told(shown)]


def test_a_broken_way_says_that_it_is_the_network_and_a_whole_one_that_it_is_not() -> None:
    dns, tcp = Phase("dns", 0.002), Phase("tcp", 0.004, "refused")
    (broken,) = Key().fails(Reason.UNAVAILABLE, dns, tcp).head().findings
    assert broken.way == "It is the network, at TCP: refused (before it: DNS 2 ms)"
    assert broken.advice is advice.NETWORK
    (whole,) = Key().fails(Reason.UNAVAILABLE, dns, Phase("tcp", 0.004), Phase("tls", 0.03)).head().findings
    assert whole.way == "The network is well (DNS 2 ms, TCP 4 ms, TLS 30 ms): it is KMS that does not answer."
    assert whole.advice is advice.BY_REASON[Reason.UNAVAILABLE]
    (measured,) = Key().fails(Reason.UNAVAILABLE).head().findings
    assert measured.way is None


def test_behind_a_proxy_nobody_is_blamed() -> None:
    (found,) = Key().fails(Reason.TIMEOUT, Phase("proxy", 0.0, "it leads through proxy:3128")).head().findings
    assert found.way == "Not known whether it is the network or KMS: it leads through proxy:3128"
    assert found.advice is advice.BY_REASON[Reason.TIMEOUT]


def test_lost_canaries_are_one_finding_for_each_reason() -> None:
    kept = tuple(lost(str(n), Reason.KEY_DISABLED) for n in range(9, 1, -1))
    shown = Key().probe().read(kept=(*kept, lost("1", Reason.UNAVAILABLE), Canary("10", WELL))).head()
    assert told(shown) == [
        (
            Light.FAILING,
            "canary lost, key_disabled",
            "What versions 9, 8, 7, 6, 5 and 3 more encrypted cannot be decrypted: of 9",
        ),
        (
            Light.ATTENTION,
            "canary not decrypted, unavailable",
            "What version 1 encrypted cannot be decrypted: of 1",
        ),
    ]
    assert [finding.advice for finding in shown.findings] == [advice.LOST, advice.BY_REASON[Reason.UNAVAILABLE]]
    assert shown.since == "round trips right since"


def test_a_wrong_aad_that_is_not_refused_is_a_failure() -> None:
    call = Call(Operation.DECRYPT, 0.01, Failure(Reason.PLAINTEXT_MISMATCH, "not refused"))
    assert told(Key().probe().read(wrong_aad=call).head()) == [(Light.FAILING, "wrong AAD accepted", "not refused")]
    assert Key().probe().read(wrong_aad=WELL).head().light is Light.WELL


def test_scheduled_destructions_are_one_finding_with_the_first_date() -> None:
    described = KeyDescription("3", None, (version(3), version(1, 20_000.0), version(2, 15_000.0)), 2)
    (found,) = Key().probe().read(described).head().findings
    assert (found.light, found.sentence, found.at) == (
        Light.ATTENTION,
        "Versions 1, 2 will be destroyed, the first",
        15_000.0,
    )


def test_missing_permissions_an_overdue_rotation_and_what_could_not_be_read_need_attention() -> None:
    shown = (
        Key()
        .probe()
        .read(KeyDescription("1", NOW - 1, (), 1), {"a.get": True, "a.use": False}, problems=("one", "two"))
        .head()
    )
    assert told(shown) == [
        (Light.ATTENTION, "permission missing", "IAM does not grant a.use."),
        (
            Light.ATTENTION,
            "rotation overdue",
            "The key was to be rotated at 1970-01-01 02:46:39 UTC; gcloud kms keys describe shows its plan.",
        ),
        (Light.ATTENTION, "not all could be read or kept", "one; two"),
    ]
    assert shown.light is Light.ATTENTION
    assert Key().probe().read(KeyDescription("1", NOW, (), 1)).head().light is Light.WELL


def test_the_worst_finding_comes_first() -> None:
    described = KeyDescription("1", NOW - 1, (), 1)
    lights = [light for light, _, _ in told(Key().fails(Reason.TIMEOUT).read(described).head())]
    assert lights == [Light.FAILING, Light.ATTENTION]


@pytest.mark.parametrize(
    ("health", "problems", "light", "titles"),
    [
        (None, ("refused",), Light.FAILING, ["down"]),
        (Health(CryptoMode.ENV, ready=True), (), Light.FAILING, ["mode is env"]),
        (Health(CryptoMode.KMS, ready=False), (), Light.FAILING, ["not ready"]),
        (Health(CryptoMode.KMS, ready=True), ("metrics: HTTP 500",), Light.ATTENTION, ["not all could be read"]),
        (Health(CryptoMode.KMS, ready=True), (), Light.WELL, []),
    ],
)
def test_a_backend_has_a_light_too(
    health: Health | None, problems: tuple[str, ...], light: Light, titles: list[str]
) -> None:
    history = History(clock=lambda: NOW)
    history.keep([], ["ledger"])
    assert head(history.backends["ledger", None], NOW, MAX_AGE).light is Light.UNKNOWN
    history.backend(BackendState("ledger", health, problems=problems))
    shown = head(history.backends["ledger", None], NOW, MAX_AGE)
    assert (shown.light, [finding.title for finding in shown.findings]) == (light, titles)
    stale = head(history.backends["ledger", None], NOW + STALE + 1, MAX_AGE)
    assert [finding.title for finding in stale.findings] == [*titles, "no news"]


def test_no_sentence_is_endless() -> None:
    long = "x" * 100_000
    key = Key().probe(Call(Operation.ENCRYPT, 0.01, Failure(Reason.INTERNAL, long)))
    shown = key.read(kept=(lost("1" * 9, Reason.TIMEOUT),), problems=(long,) * 50).head()
    assert max(len(sentence) for _, _, sentence in told(shown)) <= 501


def test_the_lists_begin_with_what_is_wrong_then_with_the_newest() -> None:
    described = KeyDescription("11", None, tuple(version(n, 5.0 if n == 3 else None) for n in (2, 3, 11)), 2)
    kept = (Canary("2", WELL), lost("1", Reason.TIMEOUT), Canary("10", WELL))
    key = Key().read(described, kept=kept)
    assert key.record.snapshot
    assert [known.number for known in versions(key.record.snapshot)] == ["3", "11", "2"]
    assert [known.version for known in canaries(key.record.snapshot)] == ["1", "10", "2"]


def test_the_protection_level_is_of_what_encrypted_last_else_of_the_primary_version() -> None:
    described = KeyDescription("2", None, (version(1), version(2)), 2)
    assert protection(Key().record) is None
    assert protection(Key().read(described).record) == "HSM"
    assert protection(Key().read(described).probe(level="SOFTWARE").record) == "SOFTWARE"


def test_two_that_share_a_name_have_ids_of_their_own() -> None:
    history = History(clock=lambda: NOW)
    history.keep([("ledger", "ledger")], ["ledger"])
    history.backend(BackendState("ledger", None, replica="10.0.0.1"))
    history.backend(BackendState("ledger", None, replica="10.0.0.2"))
    records: list[Record] = [*history.targets.values(), *history.backends.values()]
    ids = {head(record, NOW, MAX_AGE).id for record in records}
    assert len(ids) == 3
    assert all(re.fullmatch(r"(key|backend)-[0-9a-f]{16}", known) for known in ids)


def test_a_right_round_trip_that_is_too_long_ago_is_no_success() -> None:
    max_age = MaxAge(STALE, OVERDUE)
    right, wrong = Key().probe(), Key().fails(Reason.TIMEOUT)
    assert head(right.record, NOW + OVERDUE, max_age).light is Light.WELL
    shown = head(right.record, NOW + OVERDUE + 1, max_age)
    assert (shown.light, [title for _, title, _ in told(shown)]) == (Light.FAILING, ["no round trip in time"])
    assert "1970-01-01 02:46:40 UTC" in shown.findings[0].sentence
    assert [title for _, title, _ in told(head(wrong.record, NOW + OVERDUE + 1, max_age))] == ["timeout at encrypt"]


def test_advice_about_a_role_or_credentials_holds_for_those_that_never_were() -> None:
    reasons = (Reason.PERMISSION_DENIED, Reason.UNAUTHENTICATED)
    of_credentials = [advice.PERMISSION, *(advice.BY_REASON[reason] for reason in reasons)]
    assert [advised for advised in of_credentials if "again" in advised.sentence] == []


def advices() -> set[advice.Advice]:
    return {value for value in vars(advice).values() if isinstance(value, advice.Advice)} | {*advice.BY_REASON.values()}


def test_every_section_that_is_named_stands_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert set(advice.BY_REASON) == set(Reason)
    assert len(advices()) > len(Reason) + 5
    for advised in advices():
        assert anchors.count(advised.anchor) == 1  # GitHub gives the second of two equal headings another anchor


def test_what_is_lost_for_the_board_is_lost_for_the_alert() -> None:
    rules = (ROOT / "ops/prometheus/rules/keys.yml").read_text(encoding="utf-8")
    (reasons,) = re.findall(r'kms_canary_success\{\s*reason=~"([a-z_|]+)"', rules)
    assert set(reasons.split("|")) == LOST
