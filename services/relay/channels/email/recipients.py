"""Judges a mail server's replies to the recipients of one mail: accepted, deferred or rejected.

A mail is delivered once a recipient is accepted and none is deferred. A deferred recipient is tried again, alone; a
rejected one is named in the receipt. Where every recipient is rejected, the channel is misconfigured.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from services.relay.send_error import SendError, SendReason, SendScope

_ACCEPTED_CODES: Final = frozenset({250, 251})
"""The recipient is accepted, or the server will forward the mail (RFC 5321, section 4.3.2)."""
AUTHENTICATION_REQUIRED: Final = 530  # RFC 4954


class RecipientReplies:
    """The last reply to each recipient, by what it means.

    Args:
        replies: by address: the code, and the reason if the recipient was not accepted.
    """

    def __init__(self, replies: Mapping[str, str]) -> None:
        codes = {address: _parse_code(reply) for address, reply in replies.items()}
        self.has_accepted = is_any_accepted(replies.values())
        """Whether at least one recipient gets the mail."""
        self.deferred = {
            address: reply
            for address, reply in replies.items()
            if codes[address] < 500 and codes[address] not in _ACCEPTED_CODES
        }
        """Put off (4yz): to be tried again."""
        self.settled = {address: reply for address, reply in replies.items() if address not in self.deferred}
        """Accepted or rejected: not to be tried again."""
        self.rejected = {address: reply for address, reply in replies.items() if codes[address] >= 500}
        """Refused for good (5yz)."""

    def build_deferral_error(self, recipients: int) -> SendError:
        """The error where the server defers some of so many `recipients`."""
        count = f"{len(self.deferred)} of {recipients}"
        detail = f"the mail server put off {count} recipients: {format_replies(self.deferred)}"
        return SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, detail, provider_works=self.has_accepted)

    def build_rejection_error(self) -> SendError:
        """The error where the server rejects every recipient."""
        needs_login = AUTHENTICATION_REQUIRED in map(_parse_code, self.rejected.values())
        reason = SendReason.UNAUTHORIZED if needs_login else SendReason.MISCONFIGURED
        detail = f"the mail server refused every recipient: {format_replies(self.rejected)}"
        return SendError(reason, SendScope.CHANNEL, detail)


def is_any_accepted(replies: Iterable[str]) -> bool:
    """Whether the server accepted a recipient."""
    return not _ACCEPTED_CODES.isdisjoint(map(_parse_code, replies))


def format_replies(replies: Mapping[str, str]) -> str:
    """Recipients with the reply to each, for a person."""
    return ", ".join(f"{address} ({reply})" for address, reply in replies.items())


def _parse_code(reply: str) -> int:
    """The three digits at the beginning of a reply."""
    return int(reply.partition(" ")[0])
