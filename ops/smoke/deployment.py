"""Checks a deployment part by part, in the order in which data flows through it."""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ops.prometheus.build import read_rules
from services.exporter.backend_reads import ReadBackend, build_read, open_backend_reader
from services.exporter.backends.reader import BackendReader
from services.exporter.config import ExporterSettings
from services.exporter.doctor import check_documents
from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode
from shared.check import Check, CheckError, CheckNotApplicable, CheckOutcome, CheckResult, run_checks
from shared.config.secret_file import SecretFile
from shared.smoke.alerting import Severity, check_alertmanager, check_relay, check_test_alert
from shared.smoke.backend import RecordsMode, check_backend
from shared.smoke.monitoring import check_grafana, check_prometheus


async def check_mapped_backends(settings: ExporterSettings) -> list[CheckResult]:
    """Check every entry of `backends`, each of its replicas."""
    async with AsyncExitStack() as stack:
        checks: list[Check] = []
        for backend in settings.backends:
            reader = await open_backend_reader(backend, settings.probe.timeout, stack)
            checks += _Service(backend.service, reader, build_read(reader)).list_checks()
        return await run_checks(checks)


class _Service:
    """One service, whose documents the first check reads and the others judge."""

    def __init__(self, name: str, reader: BackendReader, read: ReadBackend) -> None:
        self._name, self._reader, self._read = name, reader, read
        self._states: Sequence[BackendState] = ()

    def list_checks(self) -> Iterator[Check]:
        answers = f"{self._name} answers"
        yield Check(answers, partial(check_documents, self._reader, self._read_states))
        yield Check(f"{self._name} is ready", self._check_ready, depends_on=answers)
        yield Check(f"{self._name} uses KMS", self._check_mode, depends_on=answers)

    async def _read_states(self) -> Sequence[BackendState]:
        self._states = await self._read()
        return self._states

    def _list_healths(self) -> Iterator[Health]:
        for state in self._states:
            assert state.health  # noqa: S101  # the check that the others need has passed
            yield state.health

    async def _check_ready(self) -> str:
        for health in self._list_healths():
            if not health.ready:
                raise CheckError(f"it is not ready: {health.found}", "see KMSCryptoNotReady in docs/KMS_OPERATIONS.md")
        return "it is ready"

    async def _check_mode(self) -> str:
        for health in self._list_healths():
            if health.mode is None:
                raise CheckNotApplicable("its health document names no mode")
            if health.mode is not CryptoMode.KMS:
                raise CheckError(
                    f"its mode is {health.mode}: {health.found}", "see KMSCryptoModeNotKMS in docs/KMS_OPERATIONS.md"
                )
        return "its mode is kms"


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
    without_alerts: Collection[str] = ()
    """Alerts that its Prometheus need not have."""
    alertmanager: str | None = None
    relay: str | None = None
    relay_token: SecretFile | None = None
    grafana: str | None = None
    grafana_token: SecretFile | None = None


async def check_deployment(
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
            load_rule_names(deployment.without_alerts),
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
                labels={"severity": test_alert, "env": deployment.environment},
                timeout=alert_timeout,
            )


def load_rule_names(without: Collection[str] = ()) -> dict[str, list[str]]:
    """The names of the product's alerts and recordings, by the file that they are in."""
    return {
        f"rules/{file}": [name for rule in rules if (name := rule.get("alert") or rule["record"]) not in without]
        for file, rules in read_rules().items()
    }
