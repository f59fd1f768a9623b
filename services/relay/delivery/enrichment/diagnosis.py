"""The checks of runbook and Prometheus, for the command `doctor`: both are read as delivery reads them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from services.relay.delivery.enrichment.chart_worker import can_draw
from services.relay.delivery.enrichment.enricher import EnrichmentSettings
from services.relay.delivery.enrichment.runbook import Runbook, RunbookError
from services.relay.prometheus_api import PrometheusClient, PrometheusError
from shared.check import Check, CheckError
from shared.config.placeholders import is_placeholder_url
from shared.config.secret_file import SecretFile


def list_enrichment_checks(settings: EnrichmentSettings, *, shows_own_runbooks: bool) -> Iterator[Check]:
    """The runbook's sections, and the rules of Prometheus.

    Args:
        settings: of the enrichment.
        shows_own_runbooks: whether messages link to the `runbook_url` of a rule, and a placeholder there is an error.
    """
    if settings.runbook is not None:
        file = "messages.runbook" if isinstance(settings.runbook, Path) else None
        yield Check("messages.runbook sections", partial(_check_runbook, settings), file)
    if settings.prometheus_url is not None:
        token = "messages.prometheus_token_file" if settings.prometheus_token_file else None
        api = "messages.prometheus_url API"
        yield Check(api, partial(_check_prometheus, settings), token)
        if shows_own_runbooks:
            yield Check("messages.prometheus_url runbooks", partial(_check_rule_runbooks, settings), api)


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
    async with _open_prometheus(settings) as prometheus:
        number = await prometheus.count_rules()
    if not number:
        raise CheckError("it has no alerting rules", "name the Prometheus that evaluates them")
    if not can_draw():
        raise CheckError("matplotlib is not installed", "install the extra `charts`: without it there are values alone")
    return f"{number} alerting rules"


async def _check_rule_runbooks(settings: EnrichmentSettings) -> str:
    async with _open_prometheus(settings) as prometheus:
        runbooks = await prometheus.list_runbooks()
    if placeholders := [name for name, url in runbooks.items() if is_placeholder_url(url)]:
        raise CheckError(
            f"the runbook_url of {len(placeholders)} of {len(runbooks)} rules leads to a placeholder, such as that of "
            f"{placeholders[0][:100]}",
            "set links.runbook, or replace the address in the rules and reload Prometheus",
        )
    return f"{len(runbooks)} links"


@asynccontextmanager
async def _open_prometheus(settings: EnrichmentSettings) -> AsyncIterator[PrometheusClient]:
    """Its errors are CheckErrors."""
    token = SecretFile(settings.prometheus_token_file) if settings.prometheus_token_file else None
    prometheus = PrometheusClient(settings.prometheus_url or "", token, settings.egress)
    try:
        yield prometheus
    except PrometheusError as error:
        raise CheckError(str(error), "correct the URL, the token and the path of --web.external-url") from None
    finally:
        await prometheus.close()
