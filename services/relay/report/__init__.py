"""The report of a period: its figures as pages, API, CSV and the command line show them."""
