"""Where an alert goes, and Alertmanager's own file."""
