"""A reference service with real envelope encryption: the other side of the contract."""
