"""Incidents as a list and as a timeline, and the post-mortem."""
