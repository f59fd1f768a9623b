"""The channels. `registry.py` lists the kinds; delivery knows only `channel.py`."""
