"""The rules and the configuration of Prometheus."""
