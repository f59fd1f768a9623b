"""What the tests of the routing share: the file, as it is and with all that it offers."""

import re
from pathlib import Path

FILE = Path(__file__).parents[2] / "ops/alertmanager/alertmanager.yml"
FRAGMENT = FILE.with_name("fragment.yml")


def uncommented(text: str) -> str:
    """With the YAML in its comments put into force."""
    return re.sub(r"^( +)# ( *(?:- )?[a-z_]+:(?: \S.*)?)$", r"\1\2", text, flags=re.MULTILINE)
