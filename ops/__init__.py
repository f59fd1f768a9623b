"""What runs around the services."""
