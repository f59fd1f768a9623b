"""Files of Alertmanagers that exist, in the styles in which people write them."""

from pathlib import Path
from typing import Final

import yaml

from services.relay.routes.merge import Destination

FILES: Final = sorted((Path(__file__).parent / "files").glob("*.yml"))
DIRECT: Final = {"old_matchers": "mail"}
"""Where the root route's receiver notifies nobody."""


def destination_for(file: Path) -> Destination:
    return Destination("http://relay.keypulse.svc:9912/alerts", "/etc/alertmanager/token", DIRECT.get(file.stem))


def receivers_of(text: str) -> list[str]:
    return [receiver["name"] for receiver in yaml.safe_load(text)["receivers"]]
