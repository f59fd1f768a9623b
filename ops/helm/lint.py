"""`helm lint --strict` by Helm's own engine: `python -m ops.helm.lint CHART…`, exit code 1 if it reports something."""

import sys
from pathlib import Path
from typing import Any

import helm_python as helm


def lint_chart(chart: Path, values: dict[str, Any] | None = None) -> list[str]:
    """Return Helm's errors and warnings, one line each; without `values` by the chart's own."""
    report = helm.lint(chart, values, strict=True)  # strict: warnings are errors
    return [f"{chart}: {error}" for error in report["errors"]]


def main() -> None:
    """Lints each chart that is named."""
    found = [line for chart in sys.argv[1:] for line in lint_chart(Path(chart))]
    sys.stderr.write("".join(f"{line}\n" for line in found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
