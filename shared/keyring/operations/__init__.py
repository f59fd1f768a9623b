"""TODO shared/keyring/operations."""
