"""The checks of runbook and Prometheus, for the command `doctor`: both are read as delivery reads them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from services.relay.delivery.enrichment.chart_worker import can_draw
from services.relay.delivery.enrichment.enricher import EnrichmentSettings
from services.relay.delivery.enrichment.prometheus import PrometheusClient, PrometheusError
from services.relay.delivery.enrichment.runbook import Runbook, RunbookError
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile


def list_enrichment_checks(settings: EnrichmentSettings) -> Iterator[Check]:
    """The runbook's sections, and the rules of Prometheus."""
    if settings.runbook is not None:
        file = "messages.runbook" if isinstance(settings.runbook, Path) else None
        yield Check("messages.runbook sections", partial(_check_runbook, settings), file)
    if settings.prometheus_url is not None:
        token = "messages.prometheus_token_file" if settings.prometheus_token_file else None
        yield Check("messages.prometheus_url API", partial(_check_prometheus, settings), token)


async def _check_runbook(settings: EnrichmentSettings) -> str:
    runbook = Runbook(settings.runbook or "", settings.egress)
    try:
        number = await runbook.read()
    except RunbookError as error:
        raise CheckError(str(error), "correct the path, the URL or the proxy") from None
    finally:
        await runbook.close()
    if not number:
        raise CheckError("it has no section with text", "give each alert a heading of its name")
    return f"{number} sections"


async def _check_prometheus(settings: EnrichmentSettings) -> str:
    token = SecretFile(settings.prometheus_token_file) if settings.prometheus_token_file else None
    prometheus = PrometheusClient(settings.prometheus_url or "", token, settings.egress)
    try:
        number = await prometheus.count_rules()
    except PrometheusError as error:
        raise CheckError(str(error), "correct the URL, the token and the path of --web.external-url") from None
    finally:
        await prometheus.close()
    if not number:
        raise CheckError("it has no alerting rules", "name the Prometheus that evaluates them")
    if not can_draw():
        raise CheckError("matplotlib is not installed", "install the extra `charts`: without it there are values alone")
    return f"{number} alerting rules"
