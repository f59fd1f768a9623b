"""What the relay detects by itself, and publishes through the outbox."""
