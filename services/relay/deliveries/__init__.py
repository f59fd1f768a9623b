"""What was delivered and what was not: lists, dead letters, retries."""
