"""The channels: how each provider is reached, behind `port.py`. `registry.py` lists the kinds."""
