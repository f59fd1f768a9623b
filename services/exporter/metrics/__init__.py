"""TODO services/exporter/metrics."""
