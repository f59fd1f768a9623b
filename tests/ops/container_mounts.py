"""Rewrites a container's configuration, so that its mounted files are files of this machine."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
"""What the relay's image has in /opt/keypulse/docs."""


def mounted(text: str, folder: Path) -> str:
    """`text` with each path below /run/secrets and /var/lib in `folder` instead, where it makes them; our documents."""
    for name in set(re.findall(r"/run/secrets(/[\w./-]+)", text)):
        file = folder / f"secrets{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text("0" * 32 if name.endswith("pagerduty_key") else "a-secret-of-the-tests", encoding="utf-8")
    (folder / "data" / "keypulse").mkdir(parents=True, exist_ok=True)
    text = text.replace("/run/secrets/", f"{folder}/secrets/").replace("/opt/keypulse/docs/", f"{DOCS}/")
    return text.replace("/var/lib/", f"{folder}/data/")
