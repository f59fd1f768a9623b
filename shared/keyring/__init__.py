"""The data keys of envelope encryption, as they are stored: a service uses them, a rotator changes them."""
