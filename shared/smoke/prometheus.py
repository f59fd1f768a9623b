"""The checks of a Prometheus: it answers, scrapes the exporter, has every rule, can send alerts, and records health."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from shared.smoke.check import Check, Result, TroubleError, run
from shared.smoke.http import SECONDS, Server, connected

JOB: Final = "keypulse-exporter"
HEALTH: Final = "kms:crypto_health_status"
RECORDINGS: Final = (HEALTH, "kms:decryption_error_rate_5m", "kms:uptime_since_last_crypto_init")
"""Those that always have data; the others have some only while something is wrong."""


async def prometheus_checks(
    url: str,
    rules: Mapping[str, Sequence[str]],
    *,
    seconds: float = SECONDS,
) -> list[Result]:
    """Looks at one Prometheus.

    Args:
        url: its base address.
        rules: the names of the alerts and recordings that it must have, by the file that they are in.
        seconds: for one whole answer.

    Raises:
        ValueError: `url` is no address.
    """
    async with connected(url, seconds=seconds) as server:
        checks = [
            Check("Prometheus answers", lambda: _ready(server)),
            Check("Prometheus scrapes the exporter", lambda: _scraping(server), needs="Prometheus answers"),
            Check("rules are loaded", lambda: _rules(server, rules), needs="Prometheus answers"),
            Check("Prometheus knows an Alertmanager", lambda: _alertmanagers(server), needs="Prometheus answers"),
            *(
                Check(f"{name} has data", partial(_data, server, name), needs="Prometheus scrapes the exporter")
                for name in RECORDINGS
            ),
        ]
        return await run(checks, time.monotonic)


async def _ready(server: Server) -> str:
    answer = await server.get("/-/ready")
    if answer.status != 200:
        raise TroubleError(f"it is not ready (HTTP {answer.status})", "wait until it has started, or look at its log")
    return "it is ready"


async def _scraping(server: Server) -> str:
    targets = [
        t for t in (await _api(server, "targets", {"state": "active"}))["activeTargets"] if t["labels"]["job"] == JOB
    ]
    if not targets:
        raise TroubleError(
            f"it has no target of the job {JOB}",
            "add the scrape configuration of ops/prometheus/prometheus.yml and reload it",
        )
    if down := [t for t in targets if t["health"] != "up"]:
        first = down[0]
        raise TroubleError(
            f"{len(down)} of {len(targets)} targets of {JOB} cannot be scraped, such as {first['labels']['instance']}: "
            f"{first['lastError'][:200] or first['health']}",
            "start the exporter, or correct the target",
        )
    return f"{len(targets)} up"


async def _rules(server: Server, rules: Mapping[str, Sequence[str]]) -> str:
    loaded = [rule for group in (await _api(server, "rules"))["groups"] for rule in group["rules"]]
    if broken := [rule for rule in loaded if rule["health"] == "err"]:
        raise TroubleError(
            f"{broken[0]['name']} cannot be evaluated: {broken[0].get('lastError', '')[:200]}",
            "look at its expression and at what it reads",
        )
    names = {rule["name"] for rule in loaded}
    for file, wanted in rules.items():
        if missing := [name for name in wanted if name not in names]:
            raise TroubleError(
                f"{len(missing)} rules of {file} are not loaded, such as {missing[0]}",
                f"add {file} to rule_files, as ops/prometheus/prometheus.yml has it, and reload Prometheus",
            )
    return f"{sum(map(len, rules.values()))} rules"


async def _alertmanagers(server: Server) -> str:
    if not (known := (await _api(server, "alertmanagers"))["activeAlertmanagers"]):
        raise TroubleError(
            "it sends its alerts to nobody",
            "add the part `alerting` of ops/prometheus/prometheus.yml to its configuration and reload it",
        )
    return f"{len(known)} known"


async def _data(server: Server, recording: str) -> str:
    if not (series := (await _api(server, "query", {"query": recording}))["result"]):
        raise TroubleError(
            "it returns nothing",
            "look whether its rule is loaded, and whether the exporter reads a backend and its metrics_url",
        )
    if recording == HEALTH and all(float(one["value"][1]) == 0 for one in series):
        raise TroubleError(
            "it is 0 for every service: what the exporter reads is not healthy, or no longer read",
            "look at the exporter's board, and see KMSHealthChecksFailing in docs/KMS_OPERATIONS.md",
        )
    return f"{len(series)} series"


async def _api(server: Server, what: str, params: Mapping[str, str] | None = None) -> Any:
    """`data` of an answer of Prometheus's HTTP API, version 1."""
    answer = await server.get(f"/api/v1/{what}", params)
    document = answer.json(f"/api/v1/{what}")
    if answer.status != 200 or not isinstance(document, dict) or document.get("status") != "success":
        raise TroubleError(
            f"/api/v1/{what} answers with HTTP {answer.status}",
            "look at Prometheus's log, and whether the address is its own",
        )
    return document["data"]
