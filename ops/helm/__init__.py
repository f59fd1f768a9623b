"""The Helm chart: `build` generates its derived files, `lint` runs Helm's checks."""

from pathlib import Path
from typing import Final

CHART: Final = Path(__file__).parent / "keypulse"
