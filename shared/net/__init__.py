"""TODO shared/net."""
