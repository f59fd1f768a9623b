"""A table of envelope-encrypted keys that another program made: re-wrapped as it is, with a journal beside it."""
