"""Merges keypulse's routing into the file of an Alertmanager that exists."""
