"""Mornings of an exporter: what the board shows of them is tested, and photographed for the README."""

from random import Random
from typing import Final

from ops.kms_emulator.causes import build_refusal
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
    TargetKey,
)
from shared.backend_contract import CryptoMode
from shared.credentials import Validity
from shared.kms.gcp.errors import parse_status
from shared.kms.gcp.profile import GCP_PROFILE, VERSION_STATES
from shared.kms.port import ConnectivityPhase, KeyDescription, KeyVersion, VersionState
from shared.kms.reason import Cause, Reason
from shared.kms.transit.errors import Answer, parse_error
from shared.kms.transit.profile import TRANSIT_PROFILE

NOW: Final = 1_768_469_400.0
"""2026-01-15 09:30:00 UTC."""
DAY: Final = 86_400.0
RING: Final = "projects/demo/locations/global/keyRings/app/cryptoKeys/"
SERVICES: Final = {"ledger-kek": "ledger", "vault-kek": "vault", "archive-kek": "ledger"}
PERMISSIONS: Final = (
    "cloudkms.cryptoKeyVersions.useToEncrypt",
    "cloudkms.cryptoKeyVersions.useToDecrypt",
    "cloudkms.cryptoKeys.get",
)


def healthy(**until: float) -> History:
    """Nothing is wrong; `until`: by service, how many seconds ago round trips end."""
    history = History(clock=lambda: NOW - 4000)
    history.configure(
        {(service, name): TargetKey("gcp", RING + name, GCP_PROFILE) for name, service in SERVICES.items()},
        ["ledger", "vault"],
    )
    for target in SERVICES:
        _hour(history, target, until.get(target.removesuffix("-kek"), 0))
        _key(history, target)
    for service in ("ledger", "vault"):
        _backend(history, service, CryptoMode.KMS, since=3 * DAY)
    return history


def failing() -> History:
    """The network to KMS is cut for one key, for four minutes by now."""
    history = healthy(vault=240)
    detail = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.20.0.9:443: connection attempt timed out"
    failure = Failure(Reason.UNAVAILABLE, detail, cause=Cause.CONNECT)
    phases = (
        ConnectivityPhase("dns", 0.003),
        ConnectivityPhase("tcp", 5.0, "no connection with 10.20.0.9:443: timed out", Cause.CONNECT),
    )
    for ago in range(233, 0, -30):
        call = Call(Operation.ENCRYPT, 5.0, failure)
        history.add_probe(ProbeResult("vault", "vault-kek", NOW - ago, (call,), None, None, phases))
    return history


def degraded() -> History:
    """A version is disabled that data still needs, another one will be destroyed, and a backend is without KMS."""
    history = healthy()
    detail = "projects/demo/…/cryptoKeyVersions/2 is not enabled, current state is: DISABLED."
    lost = CanaryResult("2", Call(Operation.CANARY_DECRYPT, 0.012, Failure(Reason.KEY_DISABLED, detail)))
    _key(history, "archive-kek", lost, states={"2": "DISABLED"})
    _key(history, "ledger-kek", states={"1": "DESTROY_SCHEDULED"})
    _backend(history, "ledger", CryptoMode.ENV, since=95)
    return history


def refused() -> History:
    """Each key is refused for another cause than a role, in the words and with the details of Cloud KMS."""
    began = {"ledger-kek": ("perimeter", 43), "vault-kek": ("token_expired", 58), "archive-kek": ("ekm_denied", 8)}
    history = healthy(**{target.removesuffix("-kek"): ago for target, (_, ago) in began.items()})
    _key(history, "archive-kek", level="EXTERNAL_VPC")
    for target, (cause, begin) in began.items():
        said = build_refusal(cause, "Encrypt", RING + target.removesuffix("-kek"))
        error = parse_status(said.code.name, said.message, said.details)
        failure = Failure(error.reason, error.detail, cause=error.cause, values=error.values)
        for ago in range(begin, 3, -5):
            call = Call(Operation.ENCRYPT, 0.021, failure)
            history.add_probe(ProbeResult(SERVICES[target], target, NOW - ago, (call,), None))
    return history


def transit() -> History:
    """Of three keys of Transit one has its floor raised, one a server that is sealed, and one a token that ends."""
    history = History(clock=lambda: NOW - 4000)
    keys = {name: f"transit:transit/{name.removesuffix('-kek')}" for name in SERVICES}
    targets = {(SERVICES[name], name): TargetKey("transit", key, TRANSIT_PROFILE) for name, key in keys.items()}
    history.configure(targets, [])
    text = b'{"errors":["ciphertext or signature version is disallowed by policy (too old)"]}'
    too_old = parse_error(Answer(400, text))
    shut_out = Failure(too_old.reason, f"{too_old.detail}; the floor is version 2", cause=too_old.cause)
    lost = CanaryResult("1", Call(Operation.CANARY_DECRYPT, 0.004, shut_out))
    for name in SERVICES:
        _hour(history, name, 90 if name == "vault-kek" else 0, level="SOFTWARE")
        floor = name == "ledger-kek"
        shut = KeyVersion("1", VersionState.DISABLED, "SOFTWARE", None, provider_state="below the floor")
        old = KeyVersion("1", VersionState.DECRYPT_ONLY, "SOFTWARE", None, created_at=NOW - 95 * DAY)
        newest = KeyVersion("2", VersionState.USABLE, "SOFTWARE", None, created_at=NOW - 5 * DAY)
        ends_soon = {"Transit token": Validity(NOW + 5 * 3600, NOW - 19 * 3600)} if name == "archive-kek" else {}
        inspection = KeyInspection(
            SERVICES[name],
            name,
            NOW - 20,
            KeyDescription("2", NOW + 85 * DAY, (shut if floor else old, newest), 1),
            dict.fromkeys(TRANSIT_PROFILE.probe_permissions, True),
            (lost if floor else CanaryResult("1", Call(Operation.CANARY_DECRYPT, 0.004)),),
            Call(Operation.DECRYPT, 0.003),
            {},
            credentials=ends_soon,
        )
        history.add_inspection(inspection)
    detail = "HTTP 503: Vault is sealed; gcpckms has to unseal it"
    sealed = Failure(Reason.UNAVAILABLE, detail, cause=Cause.SEALED, values={"auto_seal": "gcpckms"})
    phases = (ConnectivityPhase("dns", 0.001), ConnectivityPhase("tcp", 0.002), ConnectivityPhase("tls", 0.006))
    for ago in range(88, 3, -5):
        call = Call(Operation.ENCRYPT, 0.002, sealed)
        history.add_probe(ProbeResult("vault", "vault-kek", NOW - ago, (call,), None, None, phases))
    return history


SCENES: Final = {
    "healthy": healthy,
    "failing": failing,
    "degraded": degraded,
    "refused": refused,
    "transit": transit,
}


def _hour(history: History, target: str, until: float, level: str = "HSM") -> None:
    """Round trips every 30 s."""
    random = Random(target)  # noqa: S311  the same picture each time
    for ago in range(3595, int(until), -30):
        calls = (
            Call(Operation.ENCRYPT, 0.018 + random.lognormvariate(-5.2, 0.5)),
            Call(Operation.DECRYPT, 0.022 + random.lognormvariate(-5.0, 0.6)),
        )
        version = "3"
        history.add_probe(ProbeResult(SERVICES[target], target, NOW - ago, calls, version, level))


def _key(
    history: History,
    target: str,
    lost: CanaryResult | None = None,
    states: dict[str, str] | None = None,
    level: str = "HSM",
) -> None:
    versions = []
    for number in "123":
        name = (states or {}).get(number, "ENABLED")
        destroy_at = NOW + 9.5 * DAY if name == "DESTROY_SCHEDULED" else None
        versions.append(KeyVersion(number, VERSION_STATES[name], level, destroy_at, provider_state=name))
    two_canaries = [CanaryResult(number, Call(Operation.CANARY_DECRYPT, 0.024)) for number in "12"]
    canaries = tuple(lost if lost and lost.version == canary.version else canary for canary in two_canaries)
    history.add_inspection(
        KeyInspection(
            SERVICES[target],
            target,
            NOW - 20,
            KeyDescription("3", NOW + 41.5 * DAY, tuple(versions), 2),
            dict.fromkeys(PERMISSIONS, True),
            canaries,
            Call(Operation.DECRYPT, 0.02),
            {},
        )
    )


def _backend(history: History, service: str, mode: CryptoMode, since: float) -> None:
    for ago in (since, 4):
        history.clock = lambda ago=ago: NOW - ago  # type: ignore[misc]
        history.set_backend_states([BackendState(service, Health(mode, ready=True), NOW - 3 * DAY, 0.0)])
