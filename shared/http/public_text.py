"""What answers say to callers without credentials."""

import re
from typing import Final

_PATH: Final = re.compile(r"(?<![\w/:.])/[\w.+@%-][^\s,;:'\"`)]*")
"""An absolute path; a URL's has its host before it."""


def hide_paths(text: str) -> str:
    """The text without the paths of files and sockets, which are in the log."""
    return _PATH.sub("…", text)
