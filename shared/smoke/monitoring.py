"""The check of a Grafana: the dashboard that every message leads to is there.

The checks of a Prometheus: it answers, scrapes the exporter, has every rule, can send alerts, and records health.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from shared.check import Check, CheckError, CheckResult, run_checks
from shared.config.secret_file import SecretFile
from shared.config.settings import is_placeholder_url
from shared.smoke.http_client import TIMEOUT_SECONDS, HttpClient, check_ready, open_client

DASHBOARD_UID: Final = "kms-crypto-health"
"""Its uid."""


async def check_grafana(
    url: str,
    token: SecretFile | None = None,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> list[CheckResult]:
    """Check the dashboard by https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/.

    The token is that of a service account that may view dashboards; anonymous access needs none. Raises ValueError if
    `url` is invalid.
    """
    async with open_client(url, token, timeout) as server:

        async def dashboard() -> str:
            answer = await server.get(f"/api/dashboards/uid/{DASHBOARD_UID}")
            status = answer.status
            if status in {401, 403}:
                raise CheckError(
                    f"it refuses to be read (HTTP {status})",
                    "give the token of a service account: --grafana-token-file",
                )
            if status == 404:
                raise CheckError(
                    f"it has no dashboard {DASHBOARD_UID}", "import ops/grafana/dashboards/kms-health.json"
                )
            if status != 200:
                raise CheckError(f"it answers with HTTP {status}", "see Grafana's log")
            document = answer.parse_json("the dashboard's address")
            if not isinstance(document, dict) or "dashboard" not in document:
                raise CheckError("what answers is no Grafana", "correct the address: --grafana")
            return DASHBOARD_UID

        return await run_checks([Check("the dashboard can be reached", dashboard)])


EXPORTER_JOB: Final = "keypulse-exporter"
HEALTH_RECORDING: Final = "kms:crypto_health_status"
BACKEND_RECORDINGS: Final = ("kms:decryption_error_rate_5m", "kms:uptime_since_last_crypto_init")
"""Those that have data where a backend's metrics are read."""
RECORDINGS: Final = (HEALTH_RECORDING, *BACKEND_RECORDINGS)
"""Those that always have data; the others have some only while something is wrong."""


async def check_prometheus(
    url: str,
    rules: Mapping[str, Sequence[str]],
    *,
    has_backend: bool = True,
    is_production: bool = True,
    timeout: float = TIMEOUT_SECONDS,
) -> list[CheckResult]:
    """Check one Prometheus.

    It must have the alerts and recordings of `rules`, by the file that they are in. Without a backend the exporter only
    probes keys; in production a runbook at a placeholder's address is an error. Raises ValueError if `url` is invalid.
    """
    async with open_client(url, timeout=timeout) as server:
        checks = [
            Check("Prometheus answers", lambda: check_ready(server)),
            Check("Prometheus scrapes the exporter", lambda: _check_scraping(server), depends_on="Prometheus answers"),
            Check("rules are loaded", lambda: _check_rules(server, rules), depends_on="Prometheus answers"),
            *(
                [Check("rules lead to your runbook", lambda: _check_runbooks(server, rules), "rules are loaded")]
                if is_production
                else []
            ),
            Check(
                "Prometheus knows an Alertmanager",
                lambda: _check_alertmanagers(server),
                depends_on="Prometheus answers",
            ),
            *(
                Check(
                    f"{name} has data",
                    partial(_check_recording, server, name),
                    depends_on="Prometheus scrapes the exporter",
                )
                for name in (RECORDINGS if has_backend else (HEALTH_RECORDING,))
            ),
        ]
        return await run_checks(checks)


async def _check_scraping(server: HttpClient) -> str:
    targets = [
        t
        for t in (await query_api(server, "targets", {"state": "active"}))["activeTargets"]
        if t["labels"]["job"] == EXPORTER_JOB
    ]
    if not targets:
        raise CheckError(
            f"it has no target of the job {EXPORTER_JOB}",
            "add the scrape configuration of ops/prometheus/prometheus.yml and reload it",
        )
    if down := [t for t in targets if t["health"] != "up"]:
        first = down[0]
        raise CheckError(
            f"{len(down)} of {len(targets)} targets of {EXPORTER_JOB} cannot be scraped, such as "
            f"{first['labels']['instance']}: {first['lastError'][:200] or first['health']}",
            "start the exporter, or correct the target",
        )
    return f"{len(targets)} up"


async def _check_rules(server: HttpClient, rules: Mapping[str, Sequence[str]]) -> str:
    loaded = await _read_rules(server)
    if broken := [rule for rule in loaded if rule["health"] == "err"]:
        raise CheckError(
            f"{broken[0]['name']} cannot be evaluated: {broken[0].get('lastError', '')[:200]}",
            "check its expression and its input",
        )
    names = {rule["name"] for rule in loaded}
    for file, expected in rules.items():
        if missing := [name for name in expected if name not in names]:
            raise CheckError(
                f"{len(missing)} rules of {file} are not loaded, such as {missing[0]}",
                f"add {file} to rule_files, as ops/prometheus/prometheus.yml has it, and reload Prometheus",
            )
    return f"{sum(map(len, rules.values()))} rules"


async def _check_runbooks(server: HttpClient, rules: Mapping[str, Sequence[str]]) -> str:
    expected = {name for names in rules.values() for name in names}
    runbooks = {
        rule["name"]: rule["annotations"]["runbook_url"]
        for rule in await _read_rules(server)
        if rule["name"] in expected and "runbook_url" in rule.get("annotations", {})
    }
    if placeholders := [name for name, url in runbooks.items() if is_placeholder_url(url)]:
        first = placeholders[0]
        raise CheckError(
            f"{len(placeholders)} of {len(runbooks)} lead to a placeholder, such as {first} to {runbooks[first][:200]}",
            "replace the beginning of each runbook_url by the address of your own runbook, and reload Prometheus",
        )
    return f"{len(runbooks)} links"


async def _read_rules(server: HttpClient) -> list[dict[str, Any]]:
    return [rule for group in (await query_api(server, "rules"))["groups"] for rule in group["rules"]]


async def _check_alertmanagers(server: HttpClient) -> str:
    if not (loaded := (await query_api(server, "alertmanagers"))["activeAlertmanagers"]):
        raise CheckError(
            "it sends its alerts to nobody",
            "add the part `alerting` of ops/prometheus/prometheus.yml to its configuration and reload it",
        )
    return f"{len(loaded)} known"


async def _check_recording(server: HttpClient, recording: str) -> str:
    if not (series := (await query_api(server, "query", {"query": recording}))["result"]):
        raise CheckError(
            "it returns nothing",
            "check whether its rule is loaded, and whether the exporter reads a backend and its metrics_url",
        )
    if recording == HEALTH_RECORDING and all(float(one["value"][1]) == 0 for one in series):
        raise CheckError(
            "it is 0 for every service: what the exporter reads is not healthy, or no longer read",
            "check the exporter's board, and see KMSHealthChecksFailing in docs/KMS_OPERATIONS.md",
        )
    return f"{len(series)} series"


async def query_api(
    server: HttpClient, endpoint: str, params: Mapping[str, str] | None = None, *, is_whole: bool = False
) -> Any:
    """Return `data` of an answer of Prometheus's HTTP API, version 1.

    Raises CheckError if it is no success, and with `is_whole` also if it has a warning: data of a store that did not
    answer, behind a remote read or a Thanos, are missing.
    """
    answer = await server.get(f"/api/v1/{endpoint}", params)
    document = answer.parse_json(f"/api/v1/{endpoint}")
    is_success = isinstance(document, dict) and document.get("status") == "success" and "data" in document
    if answer.status != 200 or not is_success:
        raise CheckError(
            f"/api/v1/{endpoint} answers with HTTP {answer.status}",
            "check Prometheus's log, and whether the address is its own",
        )
    if is_whole and (warnings := document.get("warnings")):
        first = warnings[0] if isinstance(warnings, list) else warnings
        raise CheckError(
            f"/api/v1/{endpoint} answers with a part of the data: {str(first)[:200]}",
            "repair what it names, and count again",
        )
    return document["data"]
