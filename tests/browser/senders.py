"""What the relay would send, sent to the stand-ins."""

from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

import aiohttp
import aiosmtplib
from slack_sdk.web.async_client import AsyncWebClient

from ops.demo.stand_ins.app import StandIns

CRITICAL = "#security-critical"
RUNBOOK = "https://example.org/docs/KMS_OPERATIONS.md#kmscryptomodenotkms"


@dataclass
class Senders:
    """Sends to the stand-ins what the relay would."""

    stand_ins: StandIns
    http: aiohttp.ClientSession
    slack: AsyncWebClient = field(init=False)

    def __post_init__(self) -> None:
        self.slack = AsyncWebClient("xoxb-test", base_url=self.stand_ins.slack_api_url, retry_handlers=[])

    async def post(self, title: str, *, body: str = "*ledger* runs without KMS", **arguments: Any) -> str:
        """A Slack message with a header, a text, fields, buttons and a context; gives its `ts`."""
        fields = ("*env*\nprod", "*service*\nledger", "*severity*\ncritical")
        buttons = (("Runbook", RUNBOOK), ("Dashboard", "https://grafana.example.org/d/kms"))
        blocks: list[dict[str, Any]] = [
            {"type": "header", "text": {"type": "plain_text", "text": title}},
            {"type": "section", "text": {"type": "mrkdwn", "text": body}},
            {"type": "section", "fields": [{"type": "mrkdwn", "text": text} for text in fields]},
            {
                "type": "actions",
                "elements": [
                    {"type": "button", "text": {"type": "plain_text", "text": text}, "url": url}
                    for text, url in buttons
                ],
            },
            {"type": "divider"},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": "receiver `kms-critical`"}]},
        ]
        arguments = {"channel": CRITICAL, "text": title, "blocks": blocks} | arguments
        return str((await self.slack.chat_postMessage(**arguments))["ts"])

    async def mail(self, subject: str, html: str, text: str = "ledger runs without KMS") -> None:
        message = EmailMessage()
        message["From"], message["To"] = "keypulse <alerts@example.org>", "secops@example.org"
        message["Subject"], message["Message-ID"] = subject, "<1@example.org>"
        message.set_content(text)
        message.add_alternative(html, subtype="html")
        smtp = self.stand_ins.smtp
        await aiosmtplib.send(message, hostname=smtp.host, port=smtp.port, start_tls=False)

    async def page(self, action: str, summary: str = "ledger runs without KMS", **changes: Any) -> None:
        payload = {"summary": summary, "source": "prod/ledger", "severity": "critical"} | changes.pop("payload", {})
        links = [{"href": RUNBOOK, "text": "Runbook"}]
        event = {"routing_key": "0" * 32, "event_action": action, "dedup_key": "ab" * 32, "links": links}
        async with self.http.post("/pagerduty/v2/enqueue", json={**event, "payload": payload, **changes}) as answer:
            assert answer.status == 202, await answer.text()

    async def change(self, summary: str) -> None:
        event = {"routing_key": "0" * 32, "payload": {"summary": summary, "source": summary}}
        async with self.http.post("/pagerduty/v2/change/enqueue", json=event) as answer:
            assert answer.status == 202, await answer.text()

    async def everything(self) -> None:
        """What an incident leaves behind on all three."""
        root = await self.post("🔴 Firing: KMSCryptoModeNotKMS")
        await self.post("🟢 Resolved: KMSCryptoModeNotKMS", thread_ts=root)
        await self.mail("[prod] KMSCryptoModeNotKMS ledger", "<h1>Firing</h1>")
        await self.page("trigger")
        await self.change("ledger is deployed")
