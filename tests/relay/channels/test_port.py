"""What an error of a provider means for people."""

import pickle

from services.relay.channels.port import REASON_ADVICE, SendError, SendReason, SendScope


def test_every_reason_says_what_to_do() -> None:
    assert REASON_ADVICE.keys() == set(SendReason) - {SendReason.OK}


def test_what_to_do_crosses_the_pipe_of_a_sender() -> None:
    error = SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, "it is closed", hint="open it")
    received = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    assert (str(received), received.hint) == ("it is closed", "open it")
