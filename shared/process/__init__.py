"""TODO shared/process."""
