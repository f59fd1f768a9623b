"""The alerts of the benchmarks: each is a group of its own, which the sinks find by its `instance`, `group-00042`."""

import json


def labels(number: int) -> dict[str, str]:
    """Those of an alert."""
    return {
        "alertname": "KMSCryptoNotReady",
        "env": "production",
        "instance": f"group-{number:05d}",
        "service": "ledger",
        "severity": "critical",
    }


def annotations(number: int) -> dict[str, str]:
    """As long as those of a real rule."""
    return {
        "summary": f"ledger cannot encrypt on group-{number:05d}",
        "description": "Its data key could not be unwrapped by KMS for 2 minutes; requests that need it are refused.",
        "runbook_url": "https://runbooks.example.org/KMS_OPERATIONS.md#kmscryptonotready",
    }


def webhook(number: int) -> bytes:
    """What Alertmanager sends for an alert."""
    mine, text, at = labels(number), annotations(number), "2026-01-01T00:00:00.000Z"
    group = {name: mine[name] for name in ("alertname", "instance")}
    alert = {
        "status": "firing",
        "labels": mine,
        "annotations": text,
        "startsAt": at,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example.org/graph?g0.expr=crypto_ready+%3D%3D+0&g0.tab=1",
        "fingerprint": f"{number:016x}",
    }
    body = {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f'{name}="{value}"' for name, value in group.items()) + "}",
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "bench",
        "groupLabels": group,
        "commonLabels": mine,
        "commonAnnotations": text,
        "externalURL": "http://alertmanager.example.org",
        "alerts": [alert],
    }
    return json.dumps(body).encode()
