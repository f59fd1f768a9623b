"""The report of a period: its figures, page, API and command."""
