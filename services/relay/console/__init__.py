"""What people and scripts read of the relay."""
