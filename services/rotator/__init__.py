"""Rotates data keys and re-wraps them, in any service whose keyring a driver can administer."""
