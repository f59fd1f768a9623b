"""The ways to a keyring: its service's admin API, a command that stands before one, or its database itself."""
