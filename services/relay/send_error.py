"""The one error of a request to a provider: its reason, its scope, which decides what follows, and what to do."""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple


class SendReason(StrEnum):
    """How one attempt ended: the label `reason` of `relay_delivery_attempts_total`."""

    OK = "ok"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Refused, reset, or not resolved."""
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    REJECTED = "rejected"
    """The provider does not accept this message."""
    UNAUTHORIZED = "unauthorized"
    """A token, key or password is wrong, revoked or unreadable."""
    MISCONFIGURED = "misconfigured"
    """The destination does not exist, or the relay may not write to it."""
    INTERNAL = "internal"
    """A defect of the relay."""


class SendScope(StrEnum):
    """What an error is about; it decides what follows."""

    ATTEMPT = "attempt"
    """This attempt: tried again, with backoff."""
    MESSAGE = "message"
    """This message, at every attempt: dead at once, and shown."""
    CHANNEL = "channel"
    """Every message, until a person acts: tried again at the longest backoff, never dead before `give_up_after`."""


class SendError(Exception):
    """A provider did not take what was sent. Its text is fit for a log: it holds no token, key or password."""

    def __init__(
        self,
        reason: SendReason,
        scope: SendScope,
        detail: str,
        *,
        retry_after: float | None = None,
        maybe_arrived: bool = False,
        provider_works: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.scope = scope
        self.retry_after = retry_after
        """Seconds that the provider asked to wait."""
        self.maybe_arrived = maybe_arrived
        """Whether the provider may have taken the message all the same: the answer was lost, not given."""
        self.provider_works = provider_works
        """Whether the provider answered and works, so that the next message need not wait."""
        self.hint = hint
        """What to do about it, where the channel knows better than `REASON_ADVICE`; else empty."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: by default it would call the class with the text alone."""
        optional = {name: getattr(self, name) for name in ("retry_after", "maybe_arrived", "provider_works", "hint")}
        return partial(SendError, **optional), (self.reason, self.scope, str(self))


class ReasonAdvice(NamedTuple):
    """What a reason means, and what to do about it on any channel."""

    meaning: str
    action: str


REASON_ADVICE: Final[Mapping[SendReason, ReasonAdvice]] = {
    SendReason.TIMEOUT: ReasonAdvice(
        "no answer within `delivery.timeout`", "check DNS, firewall and proxy on the way to it"
    ),
    SendReason.CONNECTION: ReasonAdvice(
        "no connection: refused, reset, or its name was not resolved",
        "check its address, then DNS, firewall and proxy on the way to it",
    ),
    SendReason.RATE_LIMITED: ReasonAdvice("the provider asked to wait for too long", "wait, then try again"),
    SendReason.SERVER_ERROR: ReasonAdvice("the provider failed", "see its status page, then try again"),
    SendReason.REJECTED: ReasonAdvice(
        "the provider does not accept this message",
        "read its answer, and correct the template or setting that it is about",
    ),
    SendReason.UNAUTHORIZED: ReasonAdvice(
        "a token, key or password is wrong, revoked or unreadable", "put the current secret into its file"
    ),
    SendReason.MISCONFIGURED: ReasonAdvice(
        "the destination does not exist, or the relay may not write to it", "correct the settings of the channel"
    ),
    SendReason.INTERNAL: ReasonAdvice("a defect of the relay", "report it with the relay's log"),
}
"""By each reason but `OK`."""
