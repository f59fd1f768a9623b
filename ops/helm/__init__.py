"""The Helm chart; `build` writes what in it is made of something else, `lint` has Helm look at it."""

from pathlib import Path
from typing import Final

CHART: Final = Path(__file__).parent / "keypulse"
