"""A hook of hatchling: PyPI shows the README with addresses, since a relative link leads nowhere there."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!\[[^\]]*)?\]\((?!\w+:)(#?)([^)\s]*)\)")


class LongDescription(MetadataHookInterface):
    """Links and pictures of README.md are those of the release's tag."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": _LINK.sub(_point_to(metadata), text)}


def _point_to(metadata: dict[str, Any]) -> Any:
    url, version = metadata["urls"]["Repository"], metadata["version"]

    def replace(found: re.Match[str]) -> str:
        image, anchor, path = found.groups(default="")
        file = f"README.md#{path}" if anchor else path
        return f"{image}]({url}/{'raw' if image else 'blob'}/v{version}/{file})"

    return replace
