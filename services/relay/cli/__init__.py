"""The commands of `keypulse-relay`."""
