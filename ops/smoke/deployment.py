"""Checks a deployment part by part, in the order in which data flows through it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from ops.prometheus.rule_files import read_rules
from ops.smoke.mapped_backends import check_mapped_backends
from services.exporter.config import ExporterSettings
from shared.check import CheckOutcome, CheckResult
from shared.config.secret_file import SecretFile
from shared.smoke.alerting import Severity, check_alertmanager, check_relay, check_test_alert
from shared.smoke.backend import RecordsMode, check_backend
from shared.smoke.monitoring import check_grafana, check_prometheus

Environment = Literal["production", "staging", "demo"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """The parts, by their base URLs; None skips a part. In production a placeholder in the rules is an error."""

    backend: str | None = None
    exporter: ExporterSettings | None = None
    """Whose `backends` are checked as it reads them."""
    environment: Environment = "production"
    backend_token: SecretFile | None = None
    records: RecordsMode = "auto"
    prometheus: str | None = None
    alertmanager: str | None = None
    relay: str | None = None
    relay_token: SecretFile | None = None
    grafana: str | None = None
    grafana_token: SecretFile | None = None


async def run_checks(
    deployment: Deployment, test_alert: Severity | None, alert_timeout: float
) -> AsyncIterator[list[CheckResult]]:
    """Yield the results of each part.

    Args:
        deployment: the parts.
        test_alert: of this severity, posted if Alertmanager and the relay passed; None posts none.
        alert_timeout: seconds for the test alert.
    """
    if deployment.backend:
        yield await check_backend(deployment.backend, deployment.backend_token, records=deployment.records)
    mapped = deployment.exporter.backends if deployment.exporter else ()
    if deployment.exporter:
        yield await check_mapped_backends(deployment.exporter)
    if deployment.prometheus:
        yield await check_prometheus(
            deployment.prometheus,
            load_rule_names(),
            has_backend=deployment.backend is not None or any(each.metrics_url for each in mapped),
            is_production=deployment.environment == "production",
        )
    checks: list[CheckResult] = []
    if deployment.alertmanager:
        checks += await check_alertmanager(deployment.alertmanager)
    if deployment.relay:
        checks += await check_relay(deployment.relay, deployment.relay_token)
    yield checks
    if deployment.grafana:
        yield await check_grafana(deployment.grafana, deployment.grafana_token)
    if test_alert and deployment.alertmanager and deployment.relay:
        bad = next((result for result in checks if not result.is_ok), None)
        if bad:
            yield [CheckResult("a test alert", CheckOutcome.SKIPPED, f"not posted: it needs '{bad.name}'")]
        else:
            yield await check_test_alert(
                deployment.alertmanager,
                deployment.relay,
                deployment.relay_token,
                severity=test_alert,
                timeout=alert_timeout,
            )


def load_rule_names() -> dict[str, list[str]]:
    """The names of the product's alerts and recordings, by the file that they are in."""
    return {
        f"rules/{file}": [rule.get("alert") or rule["record"] for rule in rules] for file, rules in read_rules().items()
    }
