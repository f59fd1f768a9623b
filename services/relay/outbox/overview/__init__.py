"""Reads the state of this moment: open incidents, the last webhooks, whether the outbox drains."""
