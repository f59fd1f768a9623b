"""What is particular to one provider, as data: permissions, quotas, advice and commands. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from shared.kms.fixes import GENERIC_FIXES, FixTable
from shared.kms.reason import Reason

GENERIC_ADVICE: Final[Mapping[Reason, str]] = {
    Reason.TIMEOUT: "Check the status page of the KMS, then the network and its DNS.",
    Reason.UNAVAILABLE: "Check the status page of the KMS, then the network and its DNS.",
    Reason.PERMISSION_DENIED: "Grant the account its permissions on this key.",
    Reason.UNAUTHENTICATED: "Provide the account's credentials, and check the clock.",
    Reason.QUOTA_EXHAUSTED: "Find the caller that uses the quota, and raise the quota.",
    Reason.KEY_NOT_FOUND: "Compare the key in the configuration with the keys that the KMS lists.",
    Reason.KEY_DISABLED: "Enable the version that is needed.",
    Reason.KEY_DESTROYED: "Restore the version now, while that is possible: after its date it is gone for good.",
    Reason.CRC_MISMATCH: "Bytes changed in transit: stop writing, and escalate.",
    Reason.PLAINTEXT_MISMATCH: "Stop writing, and escalate: what is encrypted may not come back.",
    Reason.INVALID_REQUEST: "The error names the call; roll the last change back.",
    Reason.INTERNAL: "A defect of keypulse: its log has the trace; the key may be healthy.",
}


@dataclass(frozen=True, slots=True)
class KmsProfile:
    """A provider's permissions, quotas, advice and commands."""

    service_name: str
    """As its users call it, such as `Cloud KMS`."""
    probe_permissions: tuple[str, ...]
    """The permissions on a key that the exporter needs, as the provider names them; empty if it has none."""
    round_trip_permissions: tuple[str, ...] = field(default=(), kw_only=True)
    """Those of them that a round trip proves when it succeeds."""
    reads_per_minute: float
    """How many reads of keys all targets may make in total, with a reserve for people and other programs."""
    reads_per_inspection: int
    """Reads of one key inspection: the key, its versions, its permissions."""
    calls_per_minute: float
    """How many encryptions and decryptions a rotation or a verification may make in a minute while it lasts."""
    burst_calls: int
    """How many it may make at once after a rest."""
    advice: Mapping[Reason, str] = field(default_factory=dict)
    """What to do about a failure, where it differs from `GENERIC_ADVICE`."""
    fixes: FixTable = GENERIC_FIXES
    """The commands that fix a failure."""
    permission_advice: str = GENERIC_ADVICE[Reason.PERMISSION_DENIED]
    """What to do where a permission is missing."""
    rotation_advice: str = "The KMS shows the rotation schedule of the key."
    """What to do where a scheduled rotation did not happen."""
    parse_version: Callable[[bytes], str | None] = lambda _ciphertext: None
    """The version that made a ciphertext; None where its format, as documented, does not tell."""
    parse_key_name: Callable[[str], tuple[str, str] | None] = lambda _text: None
    """The key's full name and the version, empty where there is none, of a name in any of the provider's spellings.

    None where a text is no name of a key.
    """
    propagation: str = "minutes"
    """How long a new primary version, or a disabled one, takes to take effect everywhere, as text."""

    def advise(self, reason: Reason) -> str:
        """What a person does about a failure."""
        return self.advice.get(reason) or GENERIC_ADVICE[reason]

    def may_name(self, text: str, key: str) -> bool:
        """Whether a text may stand for this key: only the name of another one surely does not."""
        named = self.parse_key_name(text)
        return text == key or named is None or named[0] == key

    def list_grants(self) -> list[str]:
        """What the exporter's account needs on a key: the roles that hold its permissions, or these where none does."""
        roles = self.fixes.roles
        return list(dict.fromkeys(roles.get(permission, permission) for permission in self.probe_permissions))


GENERIC_PROFILE: Final = KmsProfile(
    service_name="KMS",
    probe_permissions=(),
    reads_per_minute=60.0,
    reads_per_inspection=3,
    calls_per_minute=6_000,
    burst_calls=600,
)
"""A provider of which nothing is known: cautious quotas, generic advice."""
