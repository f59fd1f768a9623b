"""What the exporter reads of a service: its health and metrics documents, for each replica."""
