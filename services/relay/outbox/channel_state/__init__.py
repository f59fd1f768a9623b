"""What all replicas share of a channel: its circuit breaker, rate limit and checks, and who serves it."""
