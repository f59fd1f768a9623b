"""What changes or verifies a keyring: new data keys, re-wrap, rollback, restore, verification."""
