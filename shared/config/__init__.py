"""TODO shared/config."""
