"""Deployments that people have, by name: values that have to render, and to be right."""

from pathlib import Path
from typing import Any, Final

import yaml

from ops.helm import CHART

KEY: Final = "projects/acme-prod/locations/global/keyRings/app/cryptoKeys/ledger"
PRODUCTION_EXAMPLE: Final = Path(CHART).parent / "examples/production/values.yaml"
_PARTS: Final = ("exporter", "relay", "rotator", "backend")


def _production() -> Any:
    """examples/production/values.yaml as somebody has filled it in."""
    text = PRODUCTION_EXAMPLE.read_text(encoding="utf-8")
    for placeholder, own in (("acme", "ledger"), ("example.org", "ledger.test"), ("<telephone>", '"+1 555 0100"')):
        text = text.replace(placeholder, own)
    project = text.replace("<channel>", '"#ledger-team"').replace("PROJECT", "ledger-prod")
    return yaml.safe_load(project.replace("LOCATION", "global").replace("KEYRING", "app").replace("/KEY", "/ledger"))


def _readme(number: int) -> Any:
    text = (CHART / "README.md").read_text(encoding="utf-8")
    block = text.split("```yaml\n")[number].partition("```")[0]
    return yaml.safe_load(block.replace("example.org", "ledger.test"))


DRIVER: Final = {
    "kind": "admin_api",
    "url": "https://ledger.ledger.svc",
    "token_file": "/run/secrets/keypulse/admin_token",
}
EVERYTHING: Final[dict[str, Any]] = {
    "exporter": {
        "config": {
            "service": "ledger",
            "targets": [{"name": "ledger-kek", "key": KEY, "canary_dir": "/var/lib/keypulse"}],
            "backends": [{"health_url": "http://ledger.ledger.svc:8000/healthz"}],
        },
        "env": {"GOOGLE_APPLICATION_CREDENTIALS": "/run/secrets/keypulse/gcp.json"},
    },
    "rotator": {"suspend": False, "config": {"driver": DRIVER, "kms": {"key": KEY}}},
    "backend": {"enabled": True, "config": {"kms": {"key": KEY}}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}},
    "smokeTest": {
        "prometheusUrl": "http://prometheus.monitoring.svc:9090",
        "alertmanagerUrl": "http://alertmanager.monitoring.svc:9093",
        "testAlert": "warning",
    },
}
MATRIX: Final[dict[str, dict[str, Any]]] = {
    "as it comes": {},
    "everything on": EVERYTHING,
    "the values to begin with": _production(),
    "the README's replicas": _readme(1),
    "the README's rotation": _readme(2),
    "the README's NetworkPolicy": _readme(3),
    "the README's alerts": _readme(4) | {"serviceMonitor": {"enabled": True}},
    "the README's Ingress and Gateway": _readme(5),
    "behind an Ingress": {
        "exporter": {
            **EVERYTHING["exporter"],
            "publicUrl": "http://board.ledger.test/",
            "ingress": {"enabled": True, "annotations": {"a": "b"}},
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        },
        "relay": {
            "config": {"auth": {"public_url": "https://tools.ledger.test/relay"}},
            "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "relay-tls"},
        },
        "serviceMonitor": {"enabled": True, "namespace": "monitoring", "labels": {"team": "ops", "release": "k"}},
        "prometheusRule": {"enabled": True, "namespace": "monitoring", "labels": {"release": "k"}},
        "dashboard": {"namespace": "grafana"},
        "commonLabels": {"team": "security"},
    },
    "only the exporter": {"relay": {"enabled": False}, "rotator": {"enabled": False}, "dashboard": {"enabled": False}},
    "only the relay": {"exporter": {"mode": "off"}, "rotator": {"enabled": False}},
    "nothing at all": {
        "exporter": {"mode": "off"},
        "relay": {"enabled": False},
        "rotator": {"enabled": False},
        "dashboard": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "a sidecar": {
        "exporter": EVERYTHING["exporter"] | {"mode": "sidecar", "sidecarSelector": {"app": "ledger"}},
        "serviceMonitor": {"enabled": True},
    },
    "nothing kept": EVERYTHING
    | {part: EVERYTHING.get(part, {}) | {"persistence": {"enabled": False}} for part in _PARTS},
    "claims of one's own": {
        part: {"persistence": {"existingClaim": "mine"}} for part in ("exporter", "relay", "rotator")
    },
    "a storage class": {
        part: {"persistence": {"storageClass": "fast", "size": "5Gi"}} for part in ("exporter", "relay")
    },
    "TLS and users": EVERYTHING
    | {
        part: EVERYTHING.get(part, {}) | {"web": {"existingSecret": "web", "tls": True}}
        for part in ("exporter", "relay", "backend")
    }
    | {"smokeTest": {"caSecret": "ca"}},
    "OpenShift": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
    "placed by hand": {
        part: {
            "nodeSelector": {"pool": "ops"},
            "tolerations": [{"key": "ops", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "podAnnotations": {"reloader.stakater.com/auto": "true"},
            "podLabels": {"azure.workload.identity/use": "true"},
            "priorityClassName": "ops",
            "extraVolumes": [{"name": "ca", "configMap": {"name": "keypulse-exporter"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
            "resources": {},
        }
        for part in ("exporter", "relay", "rotator")
    },
    "names of one's own": {
        "fullnameOverride": "kp",
        "nameOverride": "kms",
        "image": {"repository": "registry.ledger.test/kp", "tag": "2", "pullSecrets": ["registry"]},
        "relay": {"image": "registry.ledger.test/relay@sha256:" + "0" * 64, "serviceAccount": {"name": "mine"}},
        "runbookUrl": "https://wiki.ledger.test/kms",
    },
    "the rotator by SQL": {
        "rotator": {
            "suspend": False,
            "postgres": {"existingSecret": "postgres"},
            "config": {
                "driver": {"kind": "sql", "database": "postgresql://rotator@postgres.databases.svc:6432/ledger"},
                "kms": {"key": KEY},
            },
        }
    },
    "the backend by SQL": {
        "backend": {
            "enabled": True,
            "postgres": {"existingSecret": "postgres", "key": "pw"},
            "config": {"database": "postgresql://backend@postgres.databases.svc/backend", "kms": {"key": KEY}},
        }
    },
}
SIDECAR_EXAMPLE: Final = Path(CHART).parent / "examples/sidecar"
