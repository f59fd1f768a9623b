"""What is so now: open incidents, the last webhooks, how fast deliveries end, whether the outbox drains."""
