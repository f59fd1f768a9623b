"""The command `init`: prints a first configuration of the exporter, with what is asked for.

It asks each service for its health document and its metrics, and proposes how they are read.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import click
from yarl import URL

from services.exporter.backends.health_documents import UnreadableError
from services.exporter.backends.health_proposal import HealthProposal, propose_health
from services.exporter.backends.reader import BackendReader, open_http_client
from services.exporter.backends.settings import Backend
from services.exporter.config import ExporterSettings
from shared.config.settings import check_http_url
from shared.kms.registry import DEFAULT_PROVIDER, get_profile
from shared.process.command_line import parse_option_or_exit, print_configuration_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-exporter init --target projects/P/locations/L/keyRings/R/cryptoKeys/K > exporter.yml
  keypulse-exporter init --service ledger --target KEY --backend http://127.0.0.1:8000 > exporter.yml"""
_HEAD: Final = """\
# The exporter's configuration; docs/configuration/exporter.md explains every key. Relative paths start at its folder.
# Try it with: keypulse-exporter doctor --config exporter.yml

# The label `service` of all metrics: the name of the service whose encryption this is.
service: {service}

# How often each key is probed, and each backend read.
probe: {{interval: 30s, timeout: 5s}}

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
# The services that use the keys.
backends:
"""
_BACKEND: Final = """\
  - service: {service}
    health_url: {health}
{metrics}{mapping}    # authorization: {{credentials_file: /run/secrets/service_token}}
"""
_METRICS: Final = "    metrics_url: {}\n"
_NO_METRICS: Final = """\
    # Its metrics have none of the names that are read; `metrics` maps others to them:
    # metrics_url: {}
"""
_NO_MAPPING: Final = """\
    # Where the health document says it elsewhere, or in other words; `status` where only its status code counts:
    # health: {mode: /crypto/mode, ready: /crypto/ready, values: {kms: [KMS, hsm], env: [local], ready: [UP]}}
"""
_MAPPING: Final = """\
    # It answers {found}.
    # Correct the pointers, and add the words that it has at other times to `values`:
    health: {setting}
"""
_STATUS_ONLY: Final = """\
    # Nothing in the health document is known, so its status code counts. JSON Pointers read more:
    # health: {mode: /crypto/mode, ready: /crypto/ready, values: {kms: [KMS, hsm], env: [local], ready: [UP]}}
    health: status
"""
_HEALTH_PATHS: Final = ("/healthz", "/actuator/health", "/health", "/status", "/readyz", "/health/ready")
"""Where services have their health documents: the reference backend, Spring Boot, ASP.NET Core, Go."""
_METRICS_PATHS: Final = ("/metrics", "/actuator/prometheus")
_TIMEOUT_SECONDS: Final = 5.0


class _Service(NamedTuple):
    health_url: str
    metrics_url: str
    proposal: HealthProposal | None = None
    """None where it does not answer."""
    has_metrics: bool = True
    problem: str = ""
    """Why there is no proposal."""


@click.command("init", short_help="Print a first configuration.", epilog=_EXAMPLES)
@click.option("--target", "targets", metavar="KEY", multiple=True, help="The full name of a KMS key; may be repeated.")
@click.option(
    "--provider", metavar="NAME", default=DEFAULT_PROVIDER, show_default=True, help="The KMS provider of the keys."
)
@click.option("--backend", "backends", metavar="URL", multiple=True, help="The address of a service; may be repeated.")
@click.option("--service", metavar="NAME", default="backend", show_default=True, help="The name of the service.")
def command(targets: tuple[str, ...], provider: str, backends: tuple[str, ...], service: str) -> None:
    """Print a first configuration, with comments. Each service is asked for its documents."""
    if not targets and not backends:
        click.echo("nothing to watch; expected --target KEY or --backend URL", err=True)
        sys.exit(2)
    urls = [parse_option_or_exit("--backend", check_http_url, url) for url in backends]
    services = asyncio.run(_ask_services(urls))
    for each in services:
        if each.problem:
            click.echo(f"{each.problem}; the documents of the reference backend are assumed", err=True)
    print_configuration_or_exit(ExporterSettings, build_configuration(targets, provider, services, service))


def build_configuration(
    targets: tuple[str, ...], provider: str, services: Sequence[_Service], service: str = "backend"
) -> str:
    """Build the YAML.

    Args:
        targets: full names of keys.
        provider: of all of them.
        services: what each service answers.
        service: their name.
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
    entries = [
        _build_backend(_number_if_several(service, n, services, service), each) for n, each in enumerate(services)
    ]
    first = _HEAD.format(service=_quote(service))
    return "".join([first, *([head, *keys] if keys else []), *([_BACKENDS, *entries] if entries else [])])


def _build_backend(name: str, service: _Service) -> str:
    proposal = service.proposal
    mapping = _STATUS_ONLY
    if proposal is None or not proposal.setting:
        mapping = _NO_MAPPING
    elif proposal.found:
        mapping = _MAPPING.format(found=proposal.found, setting=proposal.setting)
    metrics = (_METRICS if service.has_metrics else _NO_METRICS).format(_quote(service.metrics_url))
    return _BACKEND.format(service=_quote(name), health=_quote(service.health_url), metrics=metrics, mapping=mapping)


async def _ask_services(urls: Sequence[str]) -> list[_Service]:
    with ThreadPoolExecutor(1) as parser:
        async with open_http_client() as session:

            def open_reader(**settings: Any) -> BackendReader:
                return BackendReader(Backend(**settings), session, parser, _TIMEOUT_SECONDS)

            return await asyncio.gather(*(_ask_service(open_reader, url) for url in urls))


async def _ask_service(open_reader: Callable[..., BackendReader], url: str) -> _Service:
    """The documents below a base address; an address with a path is that of the health document itself."""
    base = url.rstrip("/")
    urls = [f"{base}{path}" for path in _HEALTH_PATHS] if urlsplit(url).path in {"", "/"} else [url]
    found, problem = None, ""
    for health_url in urls:
        try:
            answer = await open_reader(health_url=health_url).fetch_health()
        except UnreadableError as error:
            problem = f"{URL(health_url).with_user(None)}: {error}"
            break
        if answer.media_type == "text/html" or not (200 <= answer.status < 300 or answer.status == 503):
            problem = problem or f"{URL(health_url).with_user(None)}: HTTP {answer.status}, no health document"
            continue
        proposal = propose_health(answer.body)
        if found is None or proposal.found:
            found = _Service(health_url, "", proposal)
        if proposal.found:
            break
    health_url = found.health_url if found else urls[0]
    root = re.sub("/[^/]*$", "", health_url)
    candidates = [f"{base}{path}" for path in _METRICS_PATHS] if len(urls) > 1 else [f"{root}/metrics"]
    if found is None:
        return _Service(health_url, candidates[0], problem=problem)
    for metrics_url in candidates:
        reader = open_reader(health_url=health_url, metrics_url=metrics_url, health="status")
        if (await reader.read()).has_metrics:
            return found._replace(metrics_url=metrics_url)
    return found._replace(metrics_url=candidates[0], has_metrics=False)


def _number_if_several(name: str, n: int, entries: Sequence[object], single: str) -> str:
    return single if len(entries) == 1 else f"{name}-{n + 1}"


def _quote(text: str) -> str:
    """In YAML's double quotes, which JSON's are, too."""
    return json.dumps(text, ensure_ascii=False)
