"""Stand-in providers, and a page that shows what they got."""
