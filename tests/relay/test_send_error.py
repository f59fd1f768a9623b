"""What an error of a provider means for people."""

from services.relay.send_error import REASON_ADVICE, SendReason


def test_every_reason_says_what_to_do() -> None:
    assert REASON_ADVICE.keys() == set(SendReason) - {SendReason.OK}
