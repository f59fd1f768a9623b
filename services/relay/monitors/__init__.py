"""What the relay finds out by itself, and tells through the outbox like everything else."""
