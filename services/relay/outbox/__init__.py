"""The queue: accept, merge, claim, receipt, and what all replicas share of a channel."""
