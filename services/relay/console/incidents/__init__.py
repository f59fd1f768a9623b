"""One incident: what is read of it, its timeline, and what is exported for a post-mortem."""
