"""Proofs of the path, from the exporter to what a provider shows: where one was lost, who is told, what people read."""
