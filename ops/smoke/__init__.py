"""The smoke test as a command."""
