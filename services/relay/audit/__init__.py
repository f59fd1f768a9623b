"""Who did what: the page of the audit log."""
