"""The outbox: the only package of the relay that contains SQL."""
