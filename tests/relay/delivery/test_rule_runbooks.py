"""`doctor` reads where the runbooks of Prometheus's rules lead, where messages would show them."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.relay.config import RelaySettings
from services.relay.delivery.enrichment import EnrichmentSettings
from services.relay.doctor import _shows_own_runbooks, list_enrichment_checks
from shared.check import CheckError
from tests.sites import serve_site


async def check(runbooks: dict[str, str | None]) -> str:
    """What the check finds in a Prometheus whose rules have these runbooks."""

    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/api/v1/rules"
        rules = [
            {"name": name, "query": "1", "annotations": {"runbook_url": url} if url else {}}
            for name, url in runbooks.items()
        ]
        return web.json_response({"status": "success", "data": {"groups": [{"name": "g", "rules": rules}]}})

    async with serve_site(web.get("/{path:.*}", answer)) as url:
        settings = EnrichmentSettings(prometheus_url=url)
        assert "runbooks" not in str([each.name for each in list_enrichment_checks(settings, shows_own_runbooks=False)])
        found = {each.name: each for each in list_enrichment_checks(settings, shows_own_runbooks=True)}
        return await found["messages.prometheus_url runbooks"].run()


async def test_a_placeholder_in_a_rule_is_named() -> None:
    own = "https://runbooks.mycompany.io/kms#x"
    assert await check({"A": own, "B": own, "C": None}) == "2 links"
    with pytest.raises(
        CheckError, match=r"of 2 of 3 rules leads to a placeholder, such as that of B; set links\.runbook"
    ):
        await check({"A": own, "B": "https://github.com/acme/ops", "C": "https://runbooks.example.org/"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"environment": "staging"}, False),
        ({"links": {"runbook": "https://runbooks.mycompany.io/"}}, False),
        ({"links": {"runbook": "https://runbooks.mycompany.io/", "prefer": "annotation"}}, True),
    ],
)
def test_it_is_asked_only_where_messages_in_production_link_there(
    changes: dict[str, Any], expected: bool, tmp_path: Path
) -> None:
    document = {
        "auth": {"bearer_token_file": tmp_path / "token"},
        "channels": {"log": {"kind": "log"}},
        "default_channels": ["log"],
        **changes,
    }
    assert _shows_own_runbooks(RelaySettings.model_validate(document)) is expected
