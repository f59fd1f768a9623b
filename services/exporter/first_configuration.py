"""The command `init`: prints a first configuration of the exporter, with what is asked for."""

import json
import re
import sys
from typing import Final
from urllib.parse import urlsplit

import click

from services.exporter.config import ExporterSettings
from shared.kms.registry import DEFAULT_PROVIDER, get_profile
from shared.process.command_line import print_configuration_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-exporter init --target projects/P/locations/L/keyRings/R/cryptoKeys/K > exporter.yml
  keypulse-exporter init --target KEY --backend http://127.0.0.1:8000 > exporter.yml"""
_HEAD: Final = """\
# The exporter's configuration; docs/configuration.md explains every key. Relative paths start at this file's folder.
# Try it with: keypulse-exporter doctor --config exporter.yml

# The label `service` of all metrics: the name of the service whose encryption this is.
service: backend

# How often each key is probed, and each backend read.
probe: {interval: 30s, timeout: 5s}

# Where people here read KMS_OPERATIONS.md; the board links to its sections:
# runbook_url: https://HOST/KMS_OPERATIONS.md
"""
_TARGETS: Final = """
# KMS keys.{grants}
targets:
"""
_TARGET: Final = """\
  - name: {name}
{provider}    key: {key}
    # An existing folder for ciphertexts of older versions, which are decrypted again each minute:
    # canary_dir: /var/lib/keypulse
"""
_BACKENDS: Final = """
# The services that use the keys: each has a health document with crypto_mode and crypto_ready.
backends:
"""
_BACKEND: Final = """\
  - service: {service}
    health_url: {health}
    metrics_url: {metrics}
    # Where the health document says it elsewhere, or in other words; `status` where only its status code counts:
    # health: {{mode: /crypto/mode, ready: /crypto/ready, values: {{kms: [KMS, hsm], env: [local]}}}}
    # authorization: {{credentials_file: /run/secrets/{service}_token}}
"""


@click.command("init", short_help="Print a first configuration.", epilog=_EXAMPLES)
@click.option("--target", "targets", metavar="KEY", multiple=True, help="The full name of a KMS key; may be repeated.")
@click.option(
    "--provider", metavar="NAME", default=DEFAULT_PROVIDER, show_default=True, help="The KMS provider of the keys."
)
@click.option("--backend", "backends", metavar="URL", multiple=True, help="The address of a service; may be repeated.")
def command(targets: tuple[str, ...], provider: str, backends: tuple[str, ...]) -> None:
    """Print a first configuration, with comments."""
    if not targets and not backends:
        click.echo("nothing to watch; expected --target KEY or --backend URL", err=True)
        sys.exit(2)
    print_configuration_or_exit(ExporterSettings, build_configuration(targets, provider, backends))


def build_configuration(targets: tuple[str, ...], provider: str, backends: tuple[str, ...]) -> str:
    """Build the YAML.

    Args:
        targets: full names of keys.
        provider: of all of them.
        backends: base addresses of services, or those of their health documents.
    """
    grants = " and ".join(get_profile(provider).list_grants())
    head = _TARGETS.format(grants=f" The account needs {grants} on each." if grants else "")
    line = "" if provider == DEFAULT_PROVIDER else f"    provider: {_quote(provider)}\n"
    keys = [
        _TARGET.format(
            name=_quote(_number_if_several("key", n, targets, key.rpartition("/")[2])), provider=line, key=_quote(key)
        )
        for n, key in enumerate(targets)
    ]
    services = [
        _build_backend(_number_if_several("backend", n, backends, "backend"), url) for n, url in enumerate(backends)
    ]
    return "".join([_HEAD, *([head, *keys] if keys else []), *([_BACKENDS, *services] if services else [])])


def _build_backend(service: str, url: str) -> str:
    """The documents below a base address; an address with a path is that of the health document itself."""
    base = url.rstrip("/")
    health = f"{base}/healthz" if urlsplit(url).path in {"", "/"} else url
    return _BACKEND.format(
        service=service, health=_quote(health), metrics=_quote(re.sub("/[^/]*$", "/metrics", health))
    )


def _number_if_several(name: str, n: int, entries: tuple[str, ...], single: str) -> str:
    return single if len(entries) == 1 else f"{name}-{n + 1}"


def _quote(text: str) -> str:
    """In YAML's double quotes, which JSON's are, too."""
    return json.dumps(text, ensure_ascii=False)
