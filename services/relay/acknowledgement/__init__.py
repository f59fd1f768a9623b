"""Who takes care of an incident: buttons in Slack, the link in a mail, the API."""
