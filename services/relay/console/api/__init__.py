"""The relay's JSON API."""
