"""What people read of the exporter."""
