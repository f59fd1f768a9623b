"""How many examples and iterations tests use.

`FAULTS=long` asks for more of what takes long, such as each night; the suite has six minutes on two cores without it.
"""

import os
from typing import Final

LONG: Final = os.environ.get("FAULTS") == "long"
