"""The first page: what is wrong now, and the lights of the path of an alert."""
