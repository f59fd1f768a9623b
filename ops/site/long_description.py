"""A hook of hatchling: PyPI shows the README with addresses, since a relative link leads nowhere there."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class LongDescription(MetadataHookInterface):
    """Links and pictures of README.md are those of the release's tag."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        url, tag = metadata["urls"]["Repository"], f"v{metadata['version']}"
        text = Path(self.root, "README.md").read_text("utf-8").replace("](#", "](README.md#")
        text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:)", rf"\1{url}/raw/{tag}/", text)
        text = re.sub(r"\]\((?!\w+:)", f"]({url}/blob/{tag}/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
