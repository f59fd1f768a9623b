"""The open database of the outbox: queue, group commit, dialects, migrations. It knows no delivery."""
