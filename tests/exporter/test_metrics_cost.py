"""What docs/reference.md says of the cost of probing, judged by promtool."""

import json
import re
import subprocess
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / "docs/reference.md"


def test_the_documented_expression_gives_what_google_charges(tmp_path: Path) -> None:
    found = re.search(r"^The costs of probing.*?```\n(.*?)```", REFERENCE.read_text(), re.MULTILINE | re.DOTALL)
    assert found

    def series(operation: str, each_minute: int, target: str = "a") -> dict[str, str]:
        labels = f'env="production", service="ledger", target="{target}", operation="{operation}"'
        return {"series": f"kms_operations_total{{{labels}}}", "values": f"0+{each_minute}x120"}

    # A round trip every 30 s is 172,800 operations in 30 days, 0.5184 USD; a canary each minute is a quarter of that.
    # https://cloud.google.com/kms/pricing: 10,000 cryptographic operations cost 0.03 USD, reading a key nothing.
    probing = [series("encrypt", 2), series("decrypt", 2), series("canary_decrypt", 1), series("encrypt", 2, "b")]
    reading = [series("get_key", 1), series("list_versions", 5), series("test_permissions", 1)]
    labels = '{env="production", service="ledger"}'
    expected = {"expr": found[1], "eval_time": "2h", "exp_samples": [{"labels": labels, "value": 0.9072}]}
    test = {"interval": "1m", "input_series": [*probing, *reading], "promql_expr_test": [expected]}
    file = tmp_path / "cost.yml"
    file.write_text(json.dumps({"tests": [test]}))  # JSON is YAML
    answer = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
