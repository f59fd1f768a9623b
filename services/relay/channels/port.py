"""The port of a channel: what delivery knows of Slack, email and others, and the error of a request to a provider."""

import re
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Protocol, runtime_checkable

from pydantic import AfterValidator, BeforeValidator

from services.relay.model import Message
from shared.check import Check
from shared.config.settings import Interval, Section
from shared.config.yaml_file import read_yaml

_RATE: Final = re.compile(r"([1-9][0-9]{0,5})/([smh])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class MessageRate:
    """How many messages may be sent in one second."""

    per_second: float


def _parse_rate(value: object) -> object:
    if isinstance(value, MessageRate):
        return value
    parts = _RATE.fullmatch(value) if isinstance(value, str) else None
    if parts is None:
        raise ValueError("expected messages in a time, such as 1/s, 120/m or 500/h")
    return MessageRate(int(parts[1]) / _SECONDS[parts[2]])


Rate = Annotated[MessageRate, BeforeValidator(_parse_rate, json_schema_input_type=str)]
"""A rate, written as `1/s`."""


Receipt = Mapping[str, str]
"""The provider's reply to a message that it accepted: Slack's channel and ts, PagerDuty's dedup_key, …"""
Progress = Mapping[str, str]
"""What a channel has done of a delivery already, such as which recipients have the mail."""


class DeliveryLeaseLostError(Exception):
    """The lease expired before the message was sent: another process may send it, so this attempt must not."""


class Attempt(Protocol):
    """One try to deliver a message, as its channel sees it. What is stored of it is without credentials.

    Do not catch the DeliveryLeaseLostError of its methods: nothing may be sent any more.
    """

    @property
    def message(self) -> Message:
        """The same at each attempt of a delivery."""
        ...

    @property
    def progress(self) -> Progress:
        """What earlier attempts of this delivery saved; empty at first."""
        ...

    @property
    def maybe_sent(self) -> bool:
        """Whether an earlier attempt may have arrived although it failed."""
        ...

    def before_request(self, payload: str) -> None:
        """Call it directly before each request that sends the message. Stores the payload. May raise, see the class."""
        ...

    def check_lease(self) -> None:
        """Call it again when the request is connected: connecting may have taken longer than the lease. May raise."""
        ...

    def record_reply(self, reply: str) -> None:
        """Stores the provider's reply."""
        ...

    async def save_progress(self, progress: Progress) -> None:
        """Commits progress for the next attempt, whatever happens to this one. May raise."""
        ...


class Channel(Protocol):
    """An open channel. `send` may be called concurrently for messages of different incidents."""

    async def send(self, attempt: Attempt) -> Receipt:
        """Delivers, or raises SendError or DeliveryLeaseLostError.

        It ends after its time-out; the caller may cancel it earlier.
        """
        ...

    def render_payload(self, message: Message) -> str:
        """What `send` would send, credentials masked. Pure; large messages take a while, so call it in a thread."""
        ...

    def read_secret_versions(self) -> Hashable:
        """A value that changes when one of its secrets does. Reads files, so call it in a thread."""
        ...

    def list_checks(self, key: str) -> Sequence[Check]:
        """What the command `doctor` tries: the provider, the credentials, the destination. Nothing is sent or changed.

        The names of the checks begin with the key of the channel in the configuration, such as `channels.slack`.
        """
        ...

    async def close(self) -> None:
        """Closes its connections."""
        ...


@runtime_checkable
class EditingChannel(Channel, Protocol):
    """A channel that can edit the first message of an episode."""

    async def edit(self, attempt: Attempt) -> Receipt:
        """Makes the message of the task's `first_receipt` show the attempt's message, and nobody is notified.

        Doing it twice changes nothing. Where that message is gone, another one takes its place. A digest may have no
        receipt, since its answer was lost: then it is searched for, and where it never arrived nothing is done.

        Returns:
            The receipt of the message that shows it; empty if there is none.

        Raises:
            SendError: of the scope MESSAGE where the message cannot be edited, and never will be.
            DeliveryLeaseLostError: somebody else may edit it; nothing was edited.
        """
        ...


@runtime_checkable
class AddressingChannel(Channel, Protocol):
    """A channel whose provider knows where a message can be read."""

    async def find_address(self, receipt: Receipt) -> str:
        """The http(s) address of the message of a receipt. Asks the provider, changes nothing. Raises SendError."""
        ...


_MIN_INTERVAL: Final = 10.0


def _check_interval(seconds: float) -> float:
    if seconds and seconds < _MIN_INTERVAL:
        raise ValueError(f"expected {_MIN_INTERVAL:g}s at least, or 0 to prove nothing")
    return seconds


class ProofSettings(Section):
    """How the path is proven, from the exporter to what a provider shows."""

    every: Annotated[Interval, AfterValidator(_check_interval)] = 900.0
    """The exporter's interval; 0 proves nothing."""
    slack_channel: str | None = None
    """A channel of Slack in which proofs are posted, read back and deleted; None posts nothing."""
    mail_to: tuple[str, ...] = ()
    """Addresses that get a mail with each proof; without them no mail is sent."""
    pagerduty_changes: bool = False
    """Whether a proof sends a change event, which calls nobody."""


class ProofLevel(StrEnum):
    """How far a channel proved itself; each level includes those before it."""

    REACHABLE = "reachable"
    """Connected, the credentials are valid, the channel's own destination is there and may be written to."""
    ACCEPTED = "accepted"
    """The provider took something that notifies nobody."""
    READ_BACK = "read_back"
    """The provider shows it."""


class ChannelProof(NamedTuple):
    """What a channel proved, and why no more."""

    level: ProofLevel | None
    """None if it is not even reachable."""
    error: str = ""
    """What failed at the next level that it tried, without secrets; empty if nothing did."""


@runtime_checkable
class ProvingChannel(Channel, Protocol):
    """A channel that can prove more than that its checks pass."""

    async def prove(self, proof: ProofSettings) -> ChannelProof:
        """Goes as far beyond `reachable` as it may without telling anybody. Its checks have passed just before.

        Raises SendError, if something failed at the first level that it tried: then it is `reachable`.
        """
        ...


class ChannelSettings(Section):
    """The settings of any channel; each kind adds its own keys and a `kind`."""

    merges_waiting: ClassVar[bool] = True
    """Whether a waiting event is merged into the next one of its incident."""
    acknowledges: ClassVar[bool] = False
    """Whether its provider knows acknowledgements: `send` carries the task's there, and puts it into the receipt."""
    shows_values: ClassVar[bool] = False
    """Whether its messages show `current_values`: these wait a second for Prometheus, at most."""
    shows_chart: ClassVar[bool] = False
    """Whether its messages show `chart` and `current_values`: these wait 3 s, at most."""
    digest_size: ClassVar[int] = 0
    """How many incidents one message may name in a storm, see `Message.digest`; 0 if each gets its own."""
    uses_templates: ClassVar[bool] = True
    """Whether its messages have a team's own words: it is for people, and not for programs."""
    has_acknowledge_link: ClassVar[bool] = False
    """Whether its messages have `acknowledge_url`: `destination` names the readers, and they can press no button."""
    max_concurrency: ClassVar[int] = 256
    """Messages that are sent at once."""
    provider_rate: ClassVar[MessageRate | None] = None
    """The provider's documented rate limit."""
    edit_rate: ClassVar[MessageRate] = MessageRate(1.0)
    """The provider's documented rate limit of edits, where the channel makes any."""
    rate: Rate | None = None
    """A rate such as 1/s or 120/m, instead of the provider's."""
    allow_remote_insecure: bool = False
    """Lets plaintext leave this machine: to a stand-in among containers."""

    def edit_scope(self) -> str | None:
        """What shares one limit of edits, equal in all replicas; None if messages of this channel are not edited."""
        return None

    def has_address(self, receipt: Receipt) -> bool:  # noqa: ARG002  # for those that have one
        """Whether it is an `AddressingChannel` that finds the message of this receipt."""
        return False

    @property
    def destination(self) -> str:
        """Where its messages go, for a person: `#security-critical`, an address, a service."""
        return str(getattr(self, "kind", ""))

    @property
    def rate_per_second(self) -> float | None:
        """Its own rate, or the provider's; None for no limit."""
        rate = self.rate or self.provider_rate
        return rate.per_second if rate is not None else None

    @property
    def limitations(self) -> tuple[str, ...]:
        """What this channel cannot do and others of its kind can, a short text for each; empty for most."""
        return ()

    def describe_proof_limit(self, proof: ProofSettings) -> str:  # noqa: ARG002  # for a ProvingChannel
        """Why it proves no more than that it is reachable, or what to do about that; empty where it does."""
        return "whatever it sends is a message"

    @abstractmethod
    def connect(self, timeout: float) -> Channel:
        """The channel, with `timeout` seconds for a whole send. Connects at the first send."""


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
    SendReason(reason): ReasonAdvice(**row)
    for reason, row in read_yaml(Path(__file__).with_name("reasons.yml")).items()
}
"""By each reason but `OK`."""
