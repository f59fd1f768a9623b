"""What the programs that keep something in a database share: how a person names it, and how long it may be silent."""
