"""The checks of a release: whether the repository agrees with its tag."""
