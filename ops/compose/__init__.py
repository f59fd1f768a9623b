"""What compose.yaml at the root brings up: its configurations, and the secrets that it makes."""
