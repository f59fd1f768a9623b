"""The Grafana dashboard. To build it takes the development requirements, to use it nothing: the JSON is checked in."""
