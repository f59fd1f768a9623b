"""The pages of incidents, without a browser: who is offered which action, long incidents in parts, odd addresses."""

import re
from pathlib import Path
from urllib.parse import unquote

import aiohttp

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.model import build_incident_id
from tests.relay.served_relay import Scripted, event_of, post, reaches, served, settings, webhook_of

ONE = f"/incidents/{build_incident_id(event_of())}"
TOKENS = {"viewer": "a-token-of-a-viewer", "responder": "a-token-of-a-responder", "admin": "a-token-of-an-admin"}


async def get(client: aiohttp.ClientSession, path: str, token: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.get(path, headers=headers) as response:
        return response.status, await response.text()


async def test_actions_are_offered_to_those_whose_role_allows_them(tmp_path: Path) -> None:
    for role, token in TOKENS.items():
        (tmp_path / role).write_text(token)
    tokens = [{"name": f"a-{role}", "role": role, "file": tmp_path / role} for role in TOKENS]
    alertmanager = {"urls": ["http://127.0.0.1:1"]}
    configured = settings(
        tmp_path,
        {"one": Scripted()},
        auth={"tokens": tokens, "public_url": "https://relay.example.org"},
        alertmanager=alertmanager,
    )
    async with served(configured) as client:
        await post(client, webhook_of())
        offered = {}
        for role, token in TOKENS.items():
            status, page = await get(client, ONE, token)
            assert status == 200
            offered[role] = re.findall(f'action="{ONE}/([a-z]+)"', page)
        assert offered == {"viewer": [], "responder": ["acknowledge"], "admin": ["acknowledge", "silence"]}
        assert (await get(client, ONE))[0] == 401
        status, export = await get(client, f"{ONE}/export.md", TOKENS["viewer"])
        assert (status, f"https://relay.example.org{ONE}" in export) == (200, True)  # whatever `Host` the request has
    configured = configured.model_copy(update={"alertmanager": configured.alertmanager.model_copy(update={"urls": ()})})
    async with served(configured) as client:
        _, page = await get(client, ONE, TOKENS["admin"])
        assert "<code>alertmanager.urls</code> is not set" in page


async def press(client: aiohttp.ClientSession, page: str, action: str, **fields: str) -> str:
    """What the relay answers to a button of a page, as it was when somebody opened it."""
    (form,) = re.findall(f'<form[^>]* action="{ONE}/{action}">(.*?)</form>', page, re.DOTALL)
    hidden = dict(re.findall('<input type="hidden" name="([a-z_]+)" value="([^"]*)">', form))
    async with client.post(f"{ONE}/{action}", data=hidden | fields, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, ONE)
        return unquote(response.cookies["keypulse_done"].value)


async def test_a_button_of_an_old_page_changes_nothing_of_the_next_episode(tmp_path: Path) -> None:
    configured = settings(tmp_path, {"one": Scripted()}, alertmanager={"urls": ["http://127.0.0.1:1"]})
    newer = "episode 1 is over; the incident fires again as episode 2."
    silence = {"seconds": "3600", "comment": "key is replaced"}
    async with served(configured) as client:
        await post(client, webhook_of())
        _, old = await get(client, ONE)
        await post(client, webhook_of("resolved"))
        over = "Nothing was changed: episode 1 is over; the incident is resolved."
        assert await press(client, old, "acknowledge") == over
        await post(client, webhook_of())
        assert await press(client, old, "acknowledge") == f"Nothing was changed: {newer}"
        assert await press(client, old, "silence", **silence) == f"Nothing was silenced: {newer}"
        _, new = await get(client, ONE)
        assert "nobody acknowledged it" in new
        assert "reload the page" in await press(client, new, "acknowledge", episode="")
        assert await press(client, new, "acknowledge") == "Acknowledged."
        _, acknowledged = await get(client, ONE)
        await post(client, webhook_of("resolved"))
        await post(client, webhook_of())
        assert await press(client, await show(client), "acknowledge") == "Acknowledged."
        assert "episode 2 is over" in await press(client, acknowledged, "unacknowledge")
        assert "acknowledged by anonymous" in await show(client)
        assert "The silence is requested" in await press(client, await show(client), "silence", **silence)


async def show(client: aiohttp.ClientSession) -> str:
    return (await get(client, ONE))[1]


async def test_an_incident_with_many_webhooks_is_shown_in_parts(tmp_path: Path) -> None:
    configured = settings(tmp_path, {"one": Scripted()}, delivery={"duplicate_window": "1ms"})
    async with served(configured) as client:
        for number in range(45):
            assert (await post(client, webhook_of(truncatedAlerts=number)))[0] == 202
        _, newest = await get(client, ONE)
        assert newest.count('<li class="accepted">') == 40
        assert "This page has 40 of 45 webhooks." in newest
        (earlier,) = re.findall(f'href="({ONE}[^"]+)" rel="prev"', newest)
        status, page = await get(client, earlier)
        assert (status, page.count('<li class="accepted">'), 'rel="prev"' in page) == (200, 5, False)
        assert f'<a href="{ONE}">Latest</a>' in page
        await reaches(client, 45, "relay_webhooks_total", code="202")


async def test_an_address_that_means_nothing_says_what_was_expected(tmp_path: Path) -> None:
    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        assert "No incident yet" in (await get(client, "/incidents"))[1]
        await post(client, webhook_of())
        assert (await get(client, f"{ONE}?fault=wait"))[0] == 200
        for query in ("?episode=x", "?cursor=-1", "?episode=", "?fault=x", "?cursor=ffffffffffffffff"):
            assert (await get(client, f"{ONE}{query}"))[0] == 400, query
        for query in ("?state=x", "?period=9d", "?cursor=%00", "?alert=%00", f"?alert={'x' * 999}", "?status=firing"):
            assert (await get(client, f"/incidents{query}"))[0] == 400, query
        for path in (
            "/incidents/%00",
            f"{ONE}?episode=999999999",
            f"{ONE}/export.md?episode=2",
            "/incidents/x/export.md",
        ):
            status, page = await get(client, path)
            assert (status, "<h1>" in page) == (404, True), path


async def test_the_next_attempt_says_that_it_is_due(tmp_path: Path) -> None:
    failed = SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "HTTP 503", retry_after=3600)
    async with served(settings(tmp_path, {"one": Scripted(failed)})) as client:
        await post(client, webhook_of())
        await reaches(client, 1, "relay_outbox_deliveries", channel="one", state="retrying")
        (attempt,) = re.findall("retrying, (attempt .*?)</time>", await show(client), re.DOTALL)
        assert re.fullmatch(r"attempt 2 due in (59 min|1 h)", " ".join(re.sub("<[^>]+>", " ", attempt).split()))


async def test_an_incident_is_amber_once_somebody_acknowledges_it(tmp_path: Path) -> None:
    async def find_lights() -> list[tuple[str, str]]:
        pages = [(await get(client, path))[1] for path in (ONE, "/incidents")]
        return re.findall(
            'class="card (failing|degraded|healthy)[^>]*>.*?<svg class="led ([a-z]+)"', "".join(pages), re.DOTALL
        )

    async with served(settings(tmp_path, {"one": Scripted()})) as client:
        await post(client, webhook_of())
        assert await find_lights() == [("failing", "failing")] * 2
        await press(client, await show(client), "acknowledge")
        assert await find_lights() == [("degraded", "degraded")] * 2
