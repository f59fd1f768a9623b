"""The Grafana dashboard. Its build needs the development requirements; the JSON is checked in."""
