"""PagerDuty, through the Events API v2: a message goes in, the answer's dedup_key comes out.

The dedup_key is Alertmanager's own, so an Alertmanager that pages with the same routing key opens no second incident.
Where a webhook names its `source`, that goes into the key as well: the groups of independent Alertmanagers, which often
have the same groupKey, are then incidents of their own.
https://developer.pagerduty.com/docs/send-alert-event
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import aiohttp

from services.relay.channels import wording
from services.relay.channels.attempt import attempt, secret, told
from services.relay.channels.channel import ChannelSettings, Reason, Receipt, Scope, SendError
from services.relay.channels.web_api import ProviderUrl, Session, reached, refusal
from services.relay.model import Alert, Event, Message
from shared.secret_file import SecretFile
from shared.settings import FilePath

SUMMARY = 1_024
LINKS = 20
DETAILS = 400_000  # bytes of the 512 KB that an event may have
_TEXT = 2_000
_LABEL = 500
_LABELS = 64


class PagerDutySettings(ChannelSettings):
    """A service of PagerDuty, by the routing key of its Events API v2 integration."""

    kind: Literal["pagerduty"]
    routing_key_file: FilePath
    url: ProviderUrl = "https://events.pagerduty.com/v2/enqueue"

    def connect(self, timeout: float) -> "PagerDutyChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return PagerDutyChannel(self, timeout)


class PagerDutyChannel:
    """Sends events to one service of PagerDuty."""

    def __init__(self, settings: PagerDutySettings, timeout: float) -> None:
        self._url = settings.url
        self._timeout = timeout
        self._routing_key = SecretFile(settings.routing_key_file)
        self._session = Session("PagerDuty")

    async def send(self, message: Message) -> Receipt:
        """Triggers or resolves the incident; the receipt holds its `dedup_key` and PagerDuty's `status`."""
        event = await asyncio.to_thread(render, message)
        async with attempt("PagerDuty", self._timeout):
            key = await secret(self._routing_key)
            body = _encoded({"routing_key": key, **event})
            headers = {"Content-Type": "application/json"}
            request = self._session.get().post(self._url, data=body, headers=headers)
            with reached("PagerDuty"):
                async with request as response:
                    answer = await _json(response)
        if response.status != 202:
            raise _refused(response, answer, key)
        return {"dedup_key": event["dedup_key"], "status": told(str(answer.get("status", "")), key)}

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()


def render(message: Message) -> dict[str, Any]:
    """The event without its routing key, within PagerDuty's limits whatever the alerts hold."""
    event = message.event
    alerts = wording.listed(message)
    count = f" ({wording.counts(event)})" if len(alerts) + event.truncated_alerts > 1 else ""
    first = wording.summary(alerts[0][0]) if alerts else wording.counts(event)
    page = wording.alertmanager(event)
    links = [link for _, found in alerts for link in found]

    def common(name: str, otherwise: str) -> str:
        return wording.shorten(wording.one_line(event.common_labels.get(name, "")) or otherwise, 255)

    rendered: dict[str, Any] = {
        "event_action": "resolve" if wording.is_over(event) else "trigger",
        "dedup_key": _dedup_key(event),
        "client": "keypulse",
        "payload": {
            "summary": wording.shorten(f"{wording.headline(event)}{count}: {first}", SUMMARY),
            "severity": wording.severity(event) or wording.Severity.ERROR,  # Alertmanager's default, too
            "source": common("instance", common("service", "keypulse")),
            "component": common("service", ""),
            "group": common("env", ""),
            "class": common("alertname", ""),
            "timestamp": min((alert.starts_at for alert, _ in alerts), default=message.accepted_at).isoformat(),
            "custom_details": {"alerts": wording.counts(event), **_details([alert for alert, _ in alerts])},
        },
        "links": [{"href": link.url, "text": link.text} for link in links[:LINKS]],
    }
    if page:
        rendered["client_url"] = page.url
    return rendered


def _dedup_key(event: Event) -> str:
    named = f"{event.source}\n{event.group_key}" if event.source else event.group_key
    return hashlib.sha256(named.encode(errors="surrogatepass")).hexdigest()


def _details(alerts: Sequence[Alert]) -> dict[str, Any]:
    """The alerts as far as they fit, and how many do not."""
    listed: list[dict[str, Any]] = []
    left = DETAILS
    for alert in alerts:
        detail = {
            "state": wording.when(alert),
            "summary": wording.shorten(wording.summary(alert), _TEXT),
            "description": wording.shorten(wording.description(alert), _TEXT),
            "labels": _bounded(alert.labels),
        }
        left -= len(_encoded(detail)) + 1
        if left < 0:
            return {"listed": listed, "more": f"… and {len(alerts) - len(listed)} more"}
        listed.append(detail)
    return {"listed": listed}


def _bounded(labels: Mapping[str, str]) -> dict[str, str]:
    pairs = list(wording.ordered(labels))[:_LABELS]
    return {wording.shorten(key, _LABEL): wording.shorten(value, _LABEL) for key, value in pairs}


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The answer as an object; empty where it is none: the status alone decides then."""
    try:
        answer = json.loads(await response.read())
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _refused(response: aiohttp.ClientResponse, answer: dict[str, Any], key: str) -> SendError:
    errors = answer.get("errors")
    words = "; ".join(map(str, errors)) if isinstance(errors, list) and errors else str(answer.get("message", ""))
    detail = f"PagerDuty answered HTTP {response.status}" + (f": {told(words, key)}" if words else "")
    # PagerDuty says: Invalid routing key. Or: Length of 'routing_key' is incorrect (should be 32 characters).
    if response.status == 400 and "routing" in words.lower() and "key" in words.lower():
        return SendError(Reason.UNAUTHORIZED, Scope.CHANNEL, detail)
    return refusal(response.status, response.headers, detail)
