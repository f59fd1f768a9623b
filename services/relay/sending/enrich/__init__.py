"""What is added to an event before it is told."""
