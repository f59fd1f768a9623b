"""The Helm chart; `build` writes what in it is made of something else, `lint` has Helm look at it."""
