"""Stand-in providers, and a page that shows the messages that they received."""
