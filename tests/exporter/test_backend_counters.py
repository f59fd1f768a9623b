"""A backend's counter is carried over as it is: Prometheus itself sees the restart, judged by promtool."""

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from services.exporter.model import BackendState, Health
from services.exporter.results import ExporterMetrics
from shared.backend_contract import CryptoMode

HEALTH = Health(CryptoMode.KMS, ready=True)


def scraped(reads: Iterable[BackendState]) -> dict[str, str]:
    """What a scrape after each read finds of the errors, as promtool writes a series; `_` where they are absent."""
    metrics, values = ExporterMetrics([], ["backend"]), []
    for state in reads:
        metrics.set_backend_states(state)
        samples = [sample for family in metrics.collect() for sample in family.samples]
        found = [sample.value for sample in samples if sample.name == "crypto_decryption_errors_total"]
        values.append(f"{found[0]:g}" if found else "_")
    return {"series": 'crypto_decryption_errors_total{service="backend"}', "values": " ".join(values)}


def test_a_restart_and_an_outage_cost_no_error_and_invent_none(tmp_path: Path) -> None:
    counted = [10, 12, None, None, 2, 2, 5]  # restarted while it was down; 2 + 2 + 3 errors since the first read
    series = scraped(
        BackendState("backend", HEALTH if errors is not None else None, decryption_errors=errors) for errors in counted
    )
    assert series["values"] == "10 12 _ _ 2 2 5"
    samples = [
        {"expr": "resets(crypto_decryption_errors_total[7m])", "value": 1},
        # Seven minutes, of which six lie between the first sample and the last.
        {"expr": "increase(crypto_decryption_errors_total[7m]) * 6 / 7", "value": 7},
    ]
    test = {
        "interval": "1m",
        "input_series": [series],
        "promql_expr_test": [
            {
                "expr": f"round({sample['expr']}, 0.001)",
                "eval_time": "6m",
                "exp_samples": [{"labels": '{service="backend"}', "value": sample["value"]}],
            }
            for sample in samples
        ],
    }
    file = tmp_path / "counters.yml"
    file.write_text(json.dumps({"tests": [test]}))  # JSON is YAML
    answer = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
