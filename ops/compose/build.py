"""`python -m ops.compose.build`: production's files → those of the containers, with service names instead of loopback.

The files of Prometheus and Alertmanager have no variables, and a change of production's must not be missing here; a
test checks that the generated files are current.
"""

from pathlib import Path

OPS = Path(__file__).parents[1]
FOLDER = Path(__file__).parent
_HEADER = "# Made from {source} by `python -m ops.compose.build`: change that one.\n"
_FILES = {
    "prometheus/prometheus.yml": "prometheus.yml",
    "alertmanager/alertmanager.yml": "alertmanager.yml",
    "grafana/provisioning/datasources/prometheus.yml": "grafana/datasources.yml",
}
_REPLACEMENTS = {
    "Every address is a default port on this machine": "Every address is a service of compose.yaml",
    "127.0.0.1:25\n": "mailpit:1025\n",
    "127.0.0.1:9090": "prometheus:9090",
    "127.0.0.1:9093": "alertmanager:9093",
    "127.0.0.1:9911": "exporter:9911",
    "127.0.0.1:9912": "relay:9912",
    "rules/*.yml": "/etc/prometheus/rules/*.yml",
    "env: production": "env: compose",
}
# A name may have several addresses, as the relay's has with two replicas: each is a target.
_STATIC_TARGETS = """    static_configs:
      - targets: [{host}:{port}]
        labels:
          env: compose
"""
_DNS_TARGETS = """    dns_sd_configs:
      - {{names: [{host}], type: A, port: {port}, refresh_interval: 5s}}
    relabel_configs:
      - {{target_label: env, replacement: compose}}
"""


def build_files() -> dict[Path, str]:
    """Return the containers' files with their content."""
    return {FOLDER / target: _replace_addresses(source) for source, target in _FILES.items()}


def _replace_addresses(source: str) -> str:
    text = (OPS / source).read_text(encoding="utf-8")
    for production, container in _REPLACEMENTS.items():
        text = text.replace(production, container)
    for host, port in (("exporter", 9911), ("relay", 9912)):
        text = text.replace(_STATIC_TARGETS.format(host=host, port=port), _DNS_TARGETS.format(host=host, port=port))
    return _HEADER.format(source=f"ops/{source}") + text


if __name__ == "__main__":
    for file, text in build_files().items():
        file.write_text(text, encoding="utf-8")
