"""TODO shared/http."""
