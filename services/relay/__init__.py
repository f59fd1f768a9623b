"""Takes Alertmanager's webhooks and delivers them, from a durable outbox."""
