"""What is special about Apprise: which URLs it takes, what its plugins may do, and that no alert mentions anybody."""

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from email.headerregistry import Address
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp import web

from services.relay.channels.apprise import channel as apprise_channel
from services.relay.channels.apprise.channel import AppriseSettings
from services.relay.channels.apprise.plugin import (
    PluginRequests,
    _run_with,
    build_for,
    create_plugin,
    notify,
)
from services.relay.channels.email.mail import build_mail
from services.relay.channels.pagerduty import build_event
from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.channels.requests import ProviderCall
from services.relay.http import HttpSession
from services.relay.model import DigestEntry, Event, ExcerptBlock, IncidentContext, Message, RunbookExcerpt, Status
from services.relay.text import list_fixes
from services.relay.text.chat import MAX_BODY, build_text
from shared.check import CheckError
from tests.relay.channels.conftest import Answering, OpenChannel, TcpServer, WebServer
from tests.relay.channels.doubles import MENTION
from tests.relay.channels.examples import HUGE, NASTY, change, critical, message, rotate, settings, with_text
from tests.relay.channels.kinds import unused_address
from tests.relay.channels.recording_attempt import Recorded, refuse, send
from tests.relay.served_relay import until

TOKEN = "geheim0123456789abcdef"
SERVICES = {
    "Discord": f"discord://1234567890/{TOKEN}",
    "Discord, Markdown": f"discord://1234567890/{TOKEN}?format=markdown",
    "Fluxer, Markdown": f"fluxer://1234567890/{TOKEN}?format=markdown",
    "Google Chat": f"gchat://workspace/{TOKEN}/token0123456789",
    "Matrix": f"matrix://{TOKEN}@127.0.0.1?mode=slack",
    "Mattermost": f"mmost://127.0.0.1/{TOKEN}",
    "Opsgenie": "opsgenie://01234567-89ab-cdef-0123-456789abcdef",
    "Slack": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general",
    "Teams": f"workflows://127.0.0.1/workflow/{TOKEN}",
    "Telegram": "tgram://123456789:abcdefg_hijklmnop/12315544/",
}


def capture(url: str, of: Message) -> str:
    """The bodies of the requests that Apprise makes for a message, as text; each is answered with 200."""
    plugin = create_plugin(url)
    text = build_for(plugin, of)
    bodies: list[str] = []

    def answer(prepared: requests.PreparedRequest) -> requests.Response:
        body = prepared.body.decode() if isinstance(prepared.body, bytes) else str(prepared.body)
        bodies.append(str(json.loads(body)) if body.startswith("{") else body)
        answered = requests.Response()
        answered.status_code, answered._content = 200, b'{"ok": true, "result": {}}'
        return answered

    asyncio.run(_run_with(answer, lambda: notify(plugin, of, text)))
    return "\n".join(bodies)


@pytest.mark.parametrize("service", SERVICES)
def test_no_alert_mentions_anybody_or_hides_an_address_in_any_service(service: str) -> None:
    for text in (
        "<!channel> @everyone @here <@U012ABCDEF> <at>Ann</at>",
        "[Runbook](javascript:x) <https://evil.x|Log>",
        "ops@everyone ops@Here.example.org .@channel x@1234567890 <@&1234567890> y@&1234567890",
    ):
        sent = capture(SERVICES[service], with_text(text))
        assert "everyone" in sent or "evil.x" in sent
        assert "allow_mentions" not in sent
        assert MENTION.findall(sent) == []


@pytest.mark.parametrize("service", ["Discord", "Discord, Markdown"])
def test_no_command_mentions_anybody(service: str) -> None:
    event = event_with_fix()
    own = {"kms_account": "x@everyone.iam.gserviceaccount.com"}
    alerts = tuple(replace(alert, annotations={**alert.annotations, **own}) for alert in event.alerts)
    sent = capture(SERVICES[service], message(replace(event, alerts=alerts)))
    assert '"serviceAccount:x@""everyone.iam.gserviceaccount.com"' in sent
    assert MENTION.findall(sent) == []
    assert "allow_mentions" not in sent


def test_whom_the_url_names_is_mentioned() -> None:
    sent = capture(f"{SERVICES['Discord, Markdown']}&ping=%3C@1234567890%3E", with_text("ops@everyone"))
    assert "'content': '👉 <@1234567890>'" in sent


@pytest.mark.parametrize("service", ["Teams", "Mattermost", "Opsgenie"])
def test_no_text_and_no_size_is_cut_by_apprise(service: str) -> None:
    plugin = create_plugin(SERVICES[service])
    for text in (*NASTY, *HUGE):
        built = build_for(plugin, critical(with_text(text, 60)))
        title = 0 if plugin.title_maxlen else len(built.title)
        assert 0 < len(built.body) + title <= min(plugin.body_maxlen, MAX_BODY + title)
        assert re.search(r"… and \d+ more", built.body)


def test_markdown_shows_every_character_as_it_is() -> None:
    body = build_text(with_text("*a* _b_ `c` # d\n- e\n1. f\n==="), is_markdown=True).body
    assert r"\*a\* \_b\_ \`c\` \# d" in body
    assert "\\- e  \n1\\. f  \n\\===" in body


def test_the_first_alert_is_always_there_and_the_contacts_before_the_other_ones() -> None:
    one = build_text(critical(with_text("w" * 800, 2)), limit=320)
    assert "w" * 90 in one.body
    assert one.body.endswith("… and 1 more firing")
    assert len(one.body) <= 320
    shortened = build_text(critical(message("09-firing-5", contacts={"on call": "#team"})), limit=700)
    assert "on call: #team" in shortened.body
    rows = [line for line in shortened.body.split("\n") if line.startswith("• ")]
    assert len(rows) == 5  # a table


def test_firing_alerts_hide_no_resolved_ones_from_a_service_with_little_space() -> None:
    event = message("03-resolved-1").event
    over = event.alerts[0]
    alerts = tuple(
        replace(
            over,
            fingerprint=str(n),
            labels={**over.labels, "pod": f"pod-{n}"},
            status=Status.FIRING if n < 15 else over.status,
        )
        for n in range(20)
    )
    body = build_text(message(replace(event, alerts=alerts), links=message().links * 20), limit=1_000).body
    assert "• pod-0 · firing since" in body
    assert "• pod-15 · resolved after 8 s" in body


def test_what_is_over_is_not_described_as_if_it_went_on() -> None:
    described = {"alertname": "KMSProbeFailing"}
    event = message("03-resolved-1").event
    over = replace(event.alerts[0], labels=described, annotations={"description": "KMS refuses every call"})
    of = message(replace(event, alerts=(over,)))
    sender = Address("keypulse", addr_spec="alerts@example.org")
    mail = str(build_mail(of, sender, ["a@example.org"]))
    for text in (build_text(of).payload, str(build_event(of, "resolve")), mail):
        assert "refuses" not in text
    unheard = change(of, firing_undelivered=True)
    mail = str(build_mail(unheard, sender, ["a@example.org"]))
    for text in (build_text(unheard).payload, str(build_event(unheard, "trigger")), mail):
        assert "refuses" in text


def test_a_command_is_ready_to_paste_and_what_is_known_stands_after_the_alerts() -> None:
    of = message(event_with_fix(), contacts={"on call": "#team"})
    blocks = (ExcerptBlock("step", "Look at it"), ExcerptBlock("code", "kubectl get <pods>"))
    of = change(of, excerpt=RunbookExcerpt("KMSCryptoModeNotKMS", blocks, is_truncated=True))
    context = IncidentContext(episodes_in_7_days=3, acknowledged_by="@ann <!here>")
    of = change(of, context=context, current_values={of.event.alerts[0].fingerprint: "0 (fires if == 0)"})
    (fix, *_) = list_fixes(of)
    for is_markdown in (False, True):
        body = build_text(of, is_markdown=is_markdown).body
        assert {fix.command, "kubectl get <pods>"} <= set(body.split("\n"))
        parts = (
            "now 0",
            fix.command,
            "Escalate to",
            "Acknowledged: by @\u200bann",
            "3rd time",
            "Look at it",
            "Alertmanager",
        )
        positions = [body.index(part) for part in parts]
        assert positions == sorted(positions)


@pytest.mark.parametrize("service", ["Teams", "Mattermost", "Opsgenie"])
def test_a_digest_names_every_incident_within_the_limits_of_the_service(service: str) -> None:
    entries = tuple(
        DigestEntry(
            title=f"incident-{n} @everyone <!here> permission_denied: backend cannot encrypt with ledger-kek",
            status=Status.FIRING if n else Status.RESOLVED,
            severity="warning",
            counts="1 firing",
            service="ledger (production)",
            link=f"https://alertmanager.example.org/#/alerts?n={n}",
            service_link=None,
            receiver_link=None,
            is_named_only=False,
        )
        for n in range(AppriseSettings.digest_size)
    )
    of = message()
    of = replace(of, event=replace(of.event, alerts=()), links=(), digest=entries)
    plugin = create_plugin(SERVICES[service])
    built = build_for(plugin, of)
    assert [n for n in range(len(entries)) if f"incident-{n} " not in built.body] == []
    assert built.title.startswith("15 incidents: 14 firing, 1 resolved")
    assert len(built.body) + (0 if plugin.title_maxlen else len(built.title)) <= min(plugin.body_maxlen, 4_250)
    assert MENTION.findall(built.body) == []
    few = build_text(replace(of, digest=entries[:2]), is_markdown=True).body
    assert "[Details](https://alertmanager.example.org/#/alerts?n=1)" in few


def event_with_fix() -> Event:
    """A critical alert of a permission that KMS refuses."""
    event = message("01-firing-1").event
    key = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
    kms = {
        "kms_provider": "gcp",
        "kms_key": key,
        "kms_reason": "permission_denied",
        "kms_cause": "role_missing",
        "kms_target": "ledger-kek",
    }
    return replace(event, alerts=tuple(replace(a, annotations={**a.annotations, **kms}) for a in event.alerts))


async def test_ntfy_gets_title_and_text_and_the_receipt_names_it(
    open_channel: OpenChannel, secret_file: Path, answering: Answering
) -> None:
    received: list[dict[str, Any]] = []

    async def ntfy(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.json_response({"id": "1"})

    provider = await answering(ntfy)
    rotate(secret_file, f"ntfy://{provider}/security")
    channel = open_channel({"kind": "apprise", "url_file": secret_file})
    assert await send(channel, message()) == {"service": "ntfy", "status": "200"}
    rotate(secret_file, f"ntfy://{provider}/another")
    await send(channel, message("03-resolved-1"))
    assert [each["topic"] for each in received] == ["security", "another"]
    assert [each["title"].split()[0] for each in received] == ["Firing:", "Resolved"]
    assert "Runbook: https://github.com/acme/ops/blob/main/docs/KMS_OPERATIONS.md#kms" in received[0]["message"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://geheim.example.org", "expected the Apprise URL of a service"),
        ("nothing://geheim", "expected the Apprise URL of a service"),
        ("tgram://geheim", "expected the Apprise URL of a service"),
        ("mailto://u:geheim@example.org", "reaches by HTTP; for mail there is `kind: email`"),
        ("syslog://", "reaches by HTTP"),
        ("json://127.0.0.1/geheim, json://127.0.0.1/b", "expected one Apprise URL"),
        ("json://127.0.0.1/geheim json://127.0.0.1/b", "expected one Apprise URL"),
        ("tgram://123456789:abcdefg_hijklmnop/12315544/12315545", "expected one destination"),
    ],
)
async def test_a_url_that_is_not_one_destination_of_http_is_refused(
    url: str, sentence: str, open_channel: OpenChannel, secret_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    rotate(secret_file, url)
    channel = open_channel({"kind": "apprise", "url_file": secret_file})
    refused = await refuse(channel)
    assert (refused.reason, refused.scope) == (SendReason.MISCONFIGURED, SendScope.CHANNEL)
    assert sentence in str(refused)
    assert "geheim" not in f"{refused} {caplog.text}"


async def test_plaintext_leaves_this_machine_only_where_that_is_allowed(
    open_channel: OpenChannel, secret_file: Path
) -> None:
    rotate(secret_file, "json://absent.invalid/hook")
    for allowed, reason in ((False, SendReason.MISCONFIGURED), (True, SendReason.CONNECTION)):
        values = {"kind": "apprise", "url_file": secret_file, "allow_remote_insecure": allowed}
        assert (await refuse(open_channel(values))).reason is reason


def test_without_the_package_the_configuration_says_how_to_get_it(
    secret_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apprise_channel, "_is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"not installed; run: pip install '\.\[apprise\]'"):
        settings({"kind": "apprise", "url_file": secret_file})


async def test_doctor_connects_and_sends_nothing(open_channel: OpenChannel, secret_file: Path, tcp: TcpServer) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))

    rotate(secret_file, f"json://{await tcp(listen)}/hook/{TOKEN}")
    channel = open_channel({"kind": "apprise", "url_file": secret_file})
    (check,) = channel.list_checks("channels.teams")
    assert (check.name, check.depends_on) == ("channels.teams connection", "channels.teams.url_file")
    detail = await check.run()
    assert detail.startswith("JSON: 127.0.0.1:")
    assert TOKEN not in detail
    await until(lambda: bool(heard))
    assert heard == [b""]
    rotate(secret_file, f"json://{unused_address()}/hook")
    with pytest.raises(CheckError, match="no connection to"):
        await check.run()


@pytest.fixture
def plugin_requests() -> Callable[[], PluginRequests]:
    def create() -> PluginRequests:
        session = HttpSession("the service")
        return PluginRequests(
            session, ProviderCall(Recorded(message())), "", "json://x", lambda: 0.0, allow_remote_insecure=False
        )

    return create


async def test_a_plugin_that_reports_success_without_one_is_not_believed(
    plugin_requests: Callable[[], PluginRequests], website: WebServer
) -> None:
    nothing = plugin_requests()
    assert await nothing.run(lambda: True)
    with pytest.raises(SendError, match="Apprise sent nothing"):
        nothing.conclude(is_accepted=True)
    refusing, accepting = await website(429, "", Retry_After="30"), await website(200)

    def post(*addresses: Any) -> bool:
        for address in addresses:
            requests.post(f"http://{address}/", timeout=30)
        return True

    refused = plugin_requests()
    assert await refused.run(lambda: post(accepting, refusing))
    with pytest.raises(SendError) as raised:
        refused.conclude(is_accepted=True)
    assert (raised.value.reason, raised.value.retry_after) == (SendReason.RATE_LIMITED, 30.0)
    later = plugin_requests()
    assert await later.run(lambda: post(refusing, accepting))
    assert later.conclude(is_accepted=True) == 200
    with pytest.raises(SendError, match="does not accept the answer") as doubted:
        later.conclude(is_accepted=False)
    assert doubted.value.maybe_arrived
    for each in (nothing, refused, later):
        await each._session.close()


async def test_a_thread_that_goes_on_after_the_attempt_sends_nothing_more(
    plugin_requests: Callable[[], PluginRequests], answering: Answering
) -> None:
    arrived, go_on, ended = asyncio.Event(), threading.Event(), threading.Event()
    count = 0

    async def hang(_request: web.Request) -> web.Response:
        nonlocal count
        count += 1
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    address = await answering(hang)

    def work() -> bool:
        for _ in range(3):
            try:
                requests.post(f"http://{address}/", timeout=30)
            except requests.RequestException:
                go_on.wait(5)
        ended.set()
        return False

    sending = plugin_requests()
    running = asyncio.create_task(sending.run(work))
    await asyncio.wait_for(arrived.wait(), 30)
    running.cancel()
    await asyncio.wait([running], timeout=5)
    assert running.cancelled()
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 5)
    await sending._session.close()
    assert count == 1


async def test_requests_of_other_code_are_left_alone(website: WebServer) -> None:
    address = await website(200, "fine")
    answer = await asyncio.to_thread(requests.get, f"http://{address}/", timeout=5)
    assert answer.text == "fine"
    assert isinstance(requests.Session().get_adapter(f"http://{address}/"), requests.adapters.HTTPAdapter)
