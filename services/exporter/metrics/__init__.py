"""The Prometheus families of targets and backends, encoded before a scrape asks for them."""
