"""TODO services/exporter/backends."""
