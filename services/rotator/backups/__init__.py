"""Encrypted backups of a keyring: the file, its pages, and the folder that keeps them."""
