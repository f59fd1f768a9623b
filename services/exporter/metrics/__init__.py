"""The Prometheus families of targets and backends, encoded before the scrape."""
