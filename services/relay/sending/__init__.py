"""One send at a time, in a process of its own: what a channel needs goes in, how it ended comes out."""
