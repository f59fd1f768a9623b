"""TODO services/exporter/probes."""
