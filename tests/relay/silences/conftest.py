"""A silence begins with a press in Slack, or on the page of an incident."""

from tests.relay.acknowledgement.conftest import relay, running, stand_ins, start

__all__ = ["relay", "running", "stand_ins", "start"]
