"""The open database of the outbox: queue, group commit, dialects. It knows no delivery."""
