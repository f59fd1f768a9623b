"""What people do with incidents, deliveries and webhooks, and what the outbox keeps for them."""
