"""TODO shared/keyring/journal."""
