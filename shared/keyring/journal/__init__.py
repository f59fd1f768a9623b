"""The journal of rotations: what each changed, what its runner did, and what the service's metrics show of it."""
