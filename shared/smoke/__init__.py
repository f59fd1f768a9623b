"""The smoke test: whether a deployment works, from a record that is written and read to a receipt on every channel."""
