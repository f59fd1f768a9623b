"""What is tried on one KMS key: round trips, key inspections, canaries."""
