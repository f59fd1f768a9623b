"""What a tag releases, and whether the repository agrees with it."""
