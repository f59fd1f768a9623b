"""The documents as a site, and the README as PyPI shows it."""
