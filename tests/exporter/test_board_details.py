"""What a card lists of a key and a backend, in the words that a person reads."""

import re
from dataclasses import replace
from typing import Final

import httpx2
import pytest

from services.exporter.history import History
from services.exporter.model import (
    BackendState,
    Call,
    CanaryResult,
    Failure,
    Health,
    KeyInspection,
    Operation,
    ProbeResult,
    Samples,
    TargetKey,
)
from services.exporter.web.board import MAX_LISTED_VERSIONS
from services.exporter.web.pages import BoardPages
from shared.backend_contract import KMS_DATA_KEYS, KMS_ROTATION_LAST_SUCCESS, CryptoMode
from shared.http.server import create_application, create_registry
from shared.kms.port import KeyDescription, KeyVersion, VersionState
from shared.kms.reason import Reason

NOW: Final = 1_768_469_400.0
SUCCEEDED: Final = Call(Operation.CANARY_DECRYPT, 0.0242)


@pytest.fixture
def history() -> History:
    filled = History(clock=lambda: NOW - 4)
    filled.configure({("ledger", "ledger-kek"): TargetKey()}, ["ledger"])
    return filled


async def text(history: History) -> str:
    """All that stands on the board, its parts parted by bars."""
    app = create_application(
        "keypulse exporter",
        create_registry(),
        BoardPages(history, result_max_age=180, clock=lambda: NOW).build_routes(),
    )
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        html = (await client.get("/")).text
    return re.sub(r"[\s|]*\|[\s|]*", "|", re.sub(r"<[^>]+>", "|", html)).replace("\n", " ")


def build_inspection(
    description: KeyDescription | None = None,
    permissions: dict[str, bool] | None = None,
    canaries: tuple[CanaryResult, ...] = (),
    wrong_aad: Call | None = None,
) -> KeyInspection:
    return KeyInspection("ledger", "ledger-kek", NOW - 20, description, permissions, canaries, wrong_aad, {})


async def test_versions_have_their_state_and_their_dates(history: History) -> None:
    versions = (
        KeyVersion("1", VersionState.DESTROYED, "SOFTWARE", None, NOW - 3 * 86_400),
        KeyVersion("2", VersionState.PENDING_DESTRUCTION, "HSM", NOW + 5 * 86_400),
        KeyVersion("3", VersionState.USABLE, "HSM", None, created_at=NOW - 7 * 86_400),
    )
    history.add_inspection(build_inspection(KeyDescription("3", NOW + 50 * 86_400, versions, 2)))
    details = await text(history)
    assert "|As read|20 s ago|." in details
    assert "|2|pending destruction|HSM|-|2026-01-20 09:30:00 UTC (|in 5 days|)|" in details
    assert "|3|primary|usable|HSM|2026-01-08 09:30:00 UTC (|7 days ago|)|-|" in details
    assert "|1|destroyed|SOFTWARE|-|2026-01-12 09:30:00 UTC (|3 days ago|)|" in details
    assert "|Next rotation|in 50 days|" in details
    assert "|Primary version|3|" in details
    assert "|Protection|HSM|" in details


async def test_permissions_and_canaries_are_listed(history: History) -> None:
    lost = CanaryResult("2", Call(Operation.CANARY_DECRYPT, 0.1, Failure(Reason.KEY_DISABLED, "said")))
    accepted = Call(Operation.DECRYPT, 0.1, Failure(Reason.PLAINTEXT_MISMATCH, "accepted"))
    history.add_inspection(
        build_inspection(None, {"a.use": False, "a.get": True}, (CanaryResult("3", SUCCEEDED), lost), accepted)
    )
    details = await text(history)
    assert "|Permissions|a.get: granted|a.use: missing|Canaries|" in details
    assert "|Canaries|version 2: key_disabled|version 3: decrypted in 24 ms|" in details
    assert "|Decryption with a wrong AAD|was not refused|" in details


async def test_versions_that_no_canary_watches_are_named_and_degrade_nothing(history: History) -> None:
    history.add_probe(ProbeResult("ledger", "ledger-kek", NOW - 4, (Call(Operation.ENCRYPT, 0.0042),), None))
    history.add_inspection(replace(build_inspection(), versions_without_canary=("2", "1")))
    details = await text(history)
    assert "|No canary of versions 2, 1: ciphertexts of these versions are not checked.|" in details
    assert "1 of 2 degraded" not in details
    history.add_inspection(
        replace(build_inspection(canaries=(CanaryResult("2", SUCCEEDED),)), versions_without_canary=("1",))
    )
    assert "|version 2: decrypted in 24 ms|No canary of version 1: ciphertexts of this version are not checked.|" in (
        await text(history)
    )


async def test_a_backend_reports_its_last_answer_and_its_last_failure(history: History) -> None:
    assert "|Last answer|never|" in await text(history)
    history.set_backend_states([BackendState("ledger", Health(CryptoMode.KMS, ready=True), NOW - 7200, 12.0)])
    details = await text(history)
    assert "|Mode|kms|Ready|yes|Initialised|2 h ago|Decrypt errors|12|Last answer|4 s ago|" in details
    assert "|Last failure|" not in details
    history.set_backend_states([BackendState("ledger", None, problems=("refused", "late"))])
    details = await text(history)
    assert "|Mode|" not in details  # nothing stale
    assert "|Last failure|2026-01-15 09:29:56 UTC (|4 s ago|): refused; late|" in details


async def test_a_backend_reports_how_many_data_keys_each_version_wraps_and_when_they_were_rotated(
    history: History,
) -> None:
    keys: Samples = {("2", "retired"): 2.0, ("11", "active"): 1.0, ("11", "retired"): 11.0, ("0", "retired"): 1.0}
    keys = {**keys, ("3", "retired"): 0.0}
    health = Health(CryptoMode.KMS, ready=True)
    history.set_backend_states([BackendState("ledger", health, keyring={KMS_DATA_KEYS: keys})])
    row = "|Data keys|12 under version 11 · 2 under version 2 · 1 under the local key"
    assert f"{row}|Last answer|" in await text(history)
    rotated: Samples = {("new-dek",): NOW - 3 * 86_400, ("rewrap-kek",): NOW - 9 * 86_400}
    history.set_backend_states(
        [BackendState("ledger", health, keyring={KMS_DATA_KEYS: keys, KMS_ROTATION_LAST_SUCCESS: rotated})]
    )
    assert f"{row}; last rotated|3 days ago|Last answer|" in await text(history)
    history.set_backend_states([BackendState("ledger", health)])
    assert "|Data keys|" not in await text(history)


async def test_what_a_backend_makes_up_of_its_data_keys_is_cut_and_escaped(history: History) -> None:
    keys: Samples = {(f"<b>{n}</b>", "active"): 1e300 for n in range(100)}
    health = Health(CryptoMode.KMS, ready=True)
    history.set_backend_states([BackendState("ledger", health, keyring={KMS_DATA_KEYS: keys})])
    details = await text(history)
    assert f"and {100 - MAX_LISTED_VERSIONS} more|" in details
    assert "version &lt;b&gt;0&lt;/b&gt;" in details
