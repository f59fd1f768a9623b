"""What to do: from a reason to a sentence and a section of the runbook; what the way to KMS tells. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.kms.provider import ConnectivityPhase
from shared.kms.reason import Reason

RUNBOOK_FILE: Final = "docs/KMS_OPERATIONS.md"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a person does next."""

    text: str
    section: str
    """The heading in the runbook: a reason, or an alert."""

    @property
    def anchor(self) -> str:
        """The heading's anchor, as GitHub makes it of one word."""
        return self.section.lower()


_ADVICE_TEXTS: Final = {
    Reason.TIMEOUT: "Look at https://status.cloud.google.com, then at the network and its DNS.",
    Reason.UNAVAILABLE: "Look at https://status.cloud.google.com, then at the network and its DNS.",
    Reason.PERMISSION_DENIED: "Grant the service account its role on this key.",
    Reason.UNAUTHENTICATED: "Mount the service account's credentials, and check the clock.",
    Reason.QUOTA_EXHAUSTED: "Find the caller in the project's quota page, and raise the quota.",
    Reason.KEY_NOT_FOUND: "Compare key in the configuration with what gcloud kms keys list shows.",
    Reason.KEY_DISABLED: "Enable the version that is needed.",
    Reason.KEY_DESTROYED: "Restore the version now: after its date it is gone for good.",
    Reason.CRC_MISMATCH: "Bytes changed on the way: stop writing, and escalate.",
    Reason.PLAINTEXT_MISMATCH: "Stop writing, and escalate: what is encrypted may not come back.",
    Reason.INVALID_REQUEST: "The sentence names the call; roll the last change back.",
    Reason.INTERNAL: "A defect of keypulse: its log has the trace; the key may be well.",
}
REASON_ADVICE: Final = {reason: Advice(sentence, reason) for reason, sentence in _ADVICE_TEXTS.items()}
NETWORK_ADVICE: Final = Advice(
    "Look at what is between here and KMS: name servers, routes, firewalls, proxies.", "unavailable"
)
SUCCESS_EXPIRED_ADVICE: Final = Advice(
    "Find the keys that time out: they take the places of probe.concurrency. Else raise it.", "KMSProbeFailing"
)
DESTRUCTION_ADVICE: Final = Advice(
    "Restore it if anything was ever encrypted under it and not again since.", "KMSKeyVersionDestroyScheduled"
)
PERMISSION_ADVICE: Final = Advice("Grant the service account its role on this key.", "KMSPermissionMissing")
CANARY_LOST_ADVICE: Final = Advice("Data of that version cannot be read either: make it usable again, or escalate.", "KMSCanaryLost")
WRONG_AAD_ADVICE: Final = Advice(
    "Stop writing, and escalate: nothing binds a ciphertext to its record.", "KMSWrongAADAccepted"
)
BACKEND_DOWN_ADVICE: Final = Advice("Ask its health check yourself, and see whether it runs.", "KMSHealthChecksFailing")
NOT_KMS_ADVICE: Final = Advice("Its /healthz says why; mend that, and it returns to KMS by itself.", "KMSCryptoModeNotKMS")
NOT_READY_ADVICE: Final = Advice("Its /healthz says what it waits for.", "KMSCryptoNotReady")
_NETWORK_PHASES: Final = ("dns", "tcp", "tls")


def advise_on_failure(reason: Reason, connectivity: Sequence[ConnectivityPhase]) -> Advice:
    """What to do about a failed round trip."""
    broken = any(phase.error for phase in connectivity if phase.name in _NETWORK_PHASES)
    return NETWORK_ADVICE if broken else REASON_ADVICE[reason]


def describe_connectivity(connectivity: Sequence[ConnectivityPhase]) -> str | None:
    """Whether it is the network or KMS, in a sentence; None where the way was not measured."""
    if not connectivity:
        return None
    took = ", ".join(f"{phase.name.upper()} {phase.seconds * 1000:.0f} ms" for phase in connectivity if not phase.error)
    for phase in connectivity:
        if phase.name == "proxy":
            return f"Not known whether it is the network or KMS: {phase.error}"
        if phase.error:
            before = f" (before it: {took})" if took else ""
            return f"It is the network, at {phase.name.upper()}: {phase.error}{before}"
    return f"The network is well ({took}): it is KMS that does not answer."
