"""From a committed delivery to a receipt."""
