"""The frame that every page of the console has."""
