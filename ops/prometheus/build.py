"""The exporter's job → the selectors in rules/*.yml: `python -m ops.prometheus.build` writes them anew.

A service may be scraped itself, beside the exporter that passes its metrics on: without the job its errors would count
twice. A series without any job counts, too, such as one that an aggregating proxy has left without it.
"""

import re
from pathlib import Path
from typing import Any, Final

import yaml

from shared.backend_contract import CRYPTO_METRICS, KEYRING_METRICS
from shared.smoke.monitoring import EXPORTER_JOB

_FOLDER: Final = Path(__file__).parent / "rules"


def read_rules() -> dict[str, list[dict[str, Any]]]:
    """Return the rules of each file, by its name."""
    return {
        file.name: [
            rule for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
        ]
        for file in sorted(_FOLDER.glob("*.yml"))
    }


def list_alert_names() -> list[str]:
    """The names of the product's alerts."""
    return [rule["alert"] for rules in read_rules().values() for rule in rules if "alert" in rule]


RULES_FOLDER: Final = Path(__file__).parent / "rules"
THRESHOLDS: Final = Path(__file__).parent / "thresholds.yml"
EXPORTER_SELECTOR: Final = f'job=~"{EXPORTER_JOB}|"'
"""The one place that says which series are the exporter's."""
SERVICE_METRICS: Final = (
    *(*CRYPTO_METRICS, *KEYRING_METRICS),
    "kms_operation_duration_seconds_bucket",  # of a service's own calls
)
"""What a service may expose under the names that the exporter has."""
# From `expr:` to the next line that is indented as little as it.
_EXPRESSION: Final = re.compile(r"^( +)expr: .*\n(?:\1 .*\n|\n(?=\1 ))*", re.MULTILINE)
_METRIC: Final = re.compile(rf"(?<![\w:])({'|'.join(SERVICE_METRICS)})\b(?:{{(?:job=~[^,}}]*(?:, )?)?([^}}]*)}})?")


def select_exporter_job(promql: str) -> str:
    """An expression of a rule or a dashboard in which these metrics are the exporter's alone."""

    def select(metric: re.Match[str]) -> str:
        return f"{metric[1]}{{{', '.join(filter(None, (EXPORTER_SELECTOR, metric[2])))}}}"

    return _METRIC.sub(select, promql)


def build_files() -> dict[Path, str]:
    """Return the content of each file of rules."""
    return {
        file: _EXPRESSION.sub(lambda found: select_exporter_job(found[0]), file.read_text(encoding="utf-8"))
        for file in sorted(RULES_FOLDER.glob("*.yml"))
    }


if __name__ == "__main__":
    for file, text in build_files().items():
        file.write_text(text, encoding="utf-8")
