"""What to do: from a reason to a sentence and a section of the runbook; what the way to KMS tells. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.kms.provider import Phase
from shared.kms.reason import Reason

RUNBOOK: Final = "docs/KMS_OPERATIONS.md"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a person does next."""

    sentence: str
    section: str
    """The heading in the runbook."""

    @property
    def anchor(self) -> str:
        """The heading's anchor, as GitHub makes it."""
        return self.section.lower().replace(" ", "-")


_REASONS: Final = "What a reason means"
BY_REASON: Final = {
    Reason.TIMEOUT: Advice("Look at https://status.cloud.google.com, then at the network and its DNS.", _REASONS),
    Reason.UNAVAILABLE: Advice("Look at https://status.cloud.google.com, then at the network and its DNS.", _REASONS),
    Reason.PERMISSION_DENIED: Advice("Grant the service account its role on this key again.", "Grant the role"),
    Reason.UNAUTHENTICATED: Advice("Mount the service account's credentials again, and check the clock.", _REASONS),
    Reason.QUOTA_EXHAUSTED: Advice("Find the caller in the project's quota page, and raise the quota.", _REASONS),
    Reason.KEY_NOT_FOUND: Advice("Compare key in the configuration with what gcloud kms keys list shows.", _REASONS),
    Reason.KEY_DISABLED: Advice("Enable the version that is needed.", "Enable a version"),
    Reason.KEY_DESTROYED: Advice("Restore the version now: after its date it is gone for good.", "Enable a version"),
    Reason.CRC_MISMATCH: Advice("Bytes changed on the way: stop writing, and escalate.", "Escalation"),
    Reason.PLAINTEXT_MISMATCH: Advice("Stop writing, and escalate: what is encrypted may not come back.", "Escalation"),
    Reason.INVALID_REQUEST: Advice("The sentence names the call; roll the last change back.", _REASONS),
    Reason.INTERNAL: Advice("A defect of keypulse: its log has the trace; the key may be well.", _REASONS),
}
NETWORK: Final = Advice("Look at what is between here and KMS: name servers, routes, firewalls, proxies.", _REASONS)
DESTRUCTION: Final = Advice("Restore it if anything was ever encrypted under it.", "Enable a version")
PERMISSION: Final = Advice("Grant the service account its role on this key again.", "Grant the role")
LOST: Final = Advice("Data of that version cannot be read either: make it usable again.", "Enable a version")
ROTATION: Final = Advice("See why the key was not rotated: gcloud kms keys describe shows its plan.", _REASONS)
BACKEND_DOWN: Final = Advice("Ask its health check yourself, and see whether it runs.", "KMSHealthChecksFailing")
NOT_KMS: Final = Advice("Its /healthz says why; mend that, and it returns to KMS by itself.", "KMSCryptoModeNotKMS")
NOT_READY: Final = Advice("Its /healthz says what it waits for.", "KMSCryptoNotReady")
EVERY: Final = (*BY_REASON.values(), NETWORK, DESTRUCTION, PERMISSION, LOST, ROTATION, BACKEND_DOWN, NOT_KMS, NOT_READY)
_PHASES: Final = ("dns", "tcp", "tls")


def of_a_failure(reason: Reason, way: Sequence[Phase]) -> Advice:
    """What to do about a failed round trip."""
    broken = any(phase.failure for phase in way if phase.name in _PHASES)
    return NETWORK if broken else BY_REASON[reason]


def of_the_way(way: Sequence[Phase]) -> str | None:
    """Whether it is the network or KMS, in a sentence; None where the way was not measured."""
    if not way:
        return None
    took = ", ".join(f"{phase.name.upper()} {phase.seconds * 1000:.0f} ms" for phase in way if not phase.failure)
    for phase in way:
        if phase.name == "proxy":
            return f"Not known whether it is the network or KMS: {phase.failure}"
        if phase.failure:
            before = f" (before it: {took})" if took else ""
            return f"It is the network, at {phase.name.upper()}: {phase.failure}{before}"
    return f"The network is well ({took}): it is KMS that does not answer."
