"""Where the outbox is, as a person writes it."""

from shared.sql.location import FILES, Database, parse, sqlite

__all__ = ["FILES", "Database", "parse", "sqlite"]
