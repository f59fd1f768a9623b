"""TODO services/rotator/backups."""
