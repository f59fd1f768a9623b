"""Databases: URLs in settings, connections to SQLite and PostgreSQL, and their timeouts."""
