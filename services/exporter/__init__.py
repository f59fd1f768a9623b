"""Probes KMS and reads the backend's crypto state, for Prometheus."""
