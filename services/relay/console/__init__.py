"""The console: pages for people, and the JSON API."""
