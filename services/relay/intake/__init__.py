"""From a webhook to a committed event."""
