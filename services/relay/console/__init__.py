"""The relay's API."""
