"""The command `init`: prints a first configuration of the exporter, with what is asked for.

It asks each service for its health document and its metrics, and proposes how they are read.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from shared.process.command_line import ParsedOption, print_configuration_or_exit, render_configuration

_EXAMPLES: Final = """\b
Examples:
  keypulse-exporter init --target projects/P/locations/L/keyRings/R/cryptoKeys/K > exporter.yml
  keypulse-exporter init --service ledger --target KEY --backend http://127.0.0.1:8000 > exporter.yml
  keypulse-exporter init --transit https://HOST:8200 --target transit/ledger > exporter.yml"""
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
@click.option(
    "--transit",
    metavar="URL",
    type=ParsedOption(check_http_url, "url"),
    help="The address of OpenBao or Vault, whose keys are MOUNT/KEY of Transit.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=ParsedOption(check_http_url, "url"),
    help="The address of a service; may be repeated.",
)
@click.option("--service", metavar="NAME", default="backend", show_default=True, help="The name of the service.")
def command(
    targets: tuple[str, ...], provider: str, transit: str | None, backends: tuple[str, ...], service: str
) -> None:
    """Print a first configuration, with comments. Each service is asked for its documents."""
    provider = "transit" if transit else provider
    if not targets and not backends:
        click.echo("nothing to watch; expected --target KEY or --backend URL", err=True)
        sys.exit(2)
    services = asyncio.run(_ask_services(backends))
    for each in services:
        if each.problem:
            click.echo(f"{each.problem}; the documents of the reference backend are assumed", err=True)
    text = render_configuration(
        Path(__file__).with_name("first_configuration.yml.j2"),
        service=service,
        keys=targets,
        provider="" if provider == DEFAULT_PROVIDER else provider,
        transit=transit,
        grants=get_profile(provider).list_grants(),
        backends=services,
    )
    print_configuration_or_exit(ExporterSettings, text)


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
    if root.endswith("/actuator"):  # Spring Boot, whose /actuator/metrics is a list of names
        candidates.insert(0, f"{root}/prometheus")
    if found is None:
        return _Service(health_url, candidates[0], problem=problem)
    for metrics_url in candidates:
        reader = open_reader(health_url=health_url, metrics_url=metrics_url, health="status")
        if (await reader.read()).has_metrics:
            return found._replace(metrics_url=metrics_url)
    return found._replace(metrics_url=candidates[0], has_metrics=False)
