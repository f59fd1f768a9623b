"""A deployment → what each part of it looks like, part by part, in the way that data takes through it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from shared.secret_file import SecretFile
from shared.smoke.alert import Severity, alert_checks
from shared.smoke.backend import backend_checks
from shared.smoke.check import Outcome, Result
from shared.smoke.delivery import alertmanager_checks, relay_checks
from shared.smoke.grafana import grafana_checks
from shared.smoke.prometheus import prometheus_checks

_RULES: Final = Path(__file__).parents[1] / "prometheus/rules"


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the parts are, as base addresses; one that is None is not looked at."""

    backend: str
    backend_token: SecretFile | None = None
    prometheus: str | None = None
    alertmanager: str | None = None
    relay: str | None = None
    relay_token: SecretFile | None = None
    grafana: str | None = None
    grafana_token: SecretFile | None = None


async def looked_at(where: Deployment, test_alert: Severity | None, patience: float) -> AsyncIterator[list[Result]]:
    """The results of one part after the other.

    Args:
        where: the parts.
        test_alert: of this severity, posted where Alertmanager and the relay are well; None posts none.
        patience: seconds for the test alert.
    """
    yield await backend_checks(where.backend, where.backend_token)
    if where.prometheus:
        yield await prometheus_checks(where.prometheus, expected_rules())
    way: list[Result] = []
    if where.alertmanager:
        way += await alertmanager_checks(where.alertmanager)
    if where.relay:
        way += await relay_checks(where.relay, where.relay_token)
    yield way
    if where.grafana:
        yield await grafana_checks(where.grafana, where.grafana_token)
    if test_alert and where.alertmanager and where.relay:
        bad = next((result for result in way if not result.ok), None)
        if bad:
            yield [Result("a test alert", Outcome.SKIPPED, f"not posted: it needs '{bad.name}'")]
        else:
            yield await alert_checks(
                where.alertmanager, where.relay, where.relay_token, severity=test_alert, patience=patience
            )


def expected_rules() -> dict[str, list[str]]:
    """The names of the product's alerts and recordings, by the file that they are in."""
    return {
        f"rules/{file.name}": [
            rule.get("alert") or rule["record"]
            for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
            for rule in group["rules"]
        ]
        for file in sorted(_RULES.glob("*.yml"))
    }
