"""What a message gets beside its event: an excerpt of the runbook, current values, a chart. No database."""
