"""A claimed delivery → the message that a channel is asked to tell."""

from services.relay.delivery.enrich.links import LinkRules, links
from services.relay.model import Message
from services.relay.outbox.claim import Claim


def message(claim: Claim, rules: LinkRules) -> Message:
    """The same at each attempt, so that a channel can recognise its own.

    Raises:
        ValueError: the outbox holds something that is no event.
    """
    event = claim.event()
    return Message(
        delivery_id=claim.delivery_id,
        incident_id=claim.incident_id,
        episode=claim.episode,
        event=event,
        links=tuple(links(alert, claim.accepted_at, rules) for alert in event.alerts),
        accepted_at=claim.accepted_at,
        first_receipt=claim.first_receipt,
    )
