"""What is pruned, when, and how many bytes the outbox may hold."""
