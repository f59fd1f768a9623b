"""Drivers, which reach a keyring through its service's admin API, through a command, or in its database."""
