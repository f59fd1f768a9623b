"""TODO services/relay/outbox/engine."""
