"""Key management services behind one port."""
