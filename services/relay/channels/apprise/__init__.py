"""Services that Apprise knows."""
