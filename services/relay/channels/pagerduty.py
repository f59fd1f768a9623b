"""PagerDuty, through the Events API v2. The receipt is the reply's dedup_key.

The dedup_key is Alertmanager's own, so an Alertmanager that pages with the same routing key opens no second incident
beside one that is open, and an event that is sent again, because its reply was lost, changes nothing. A webhook's
`source` is part of the key: independent Alertmanagers often have groups with the same groupKey, which are incidents of
their own.
https://developer.pagerduty.com/docs/send-alert-event

Receivers are no part of the key, so the incidents of two receivers with one groupKey are one in PagerDuty: while one of
them is open, the resolve of the other is not sent.

An acknowledgement is an event of its own, after the trigger. PagerDuty drops it if nothing is open, or if another
routing key opened it. An incident that is acknowledged calls nobody again, whatever is triggered: who acknowledged it
has to look. PagerDuty's API has no event that withdraws an acknowledgement.
https://developer.pagerduty.com/docs/events-api-v2-overview

So where the resolve of an earlier episode did not arrive, it is sent before the next trigger, unless another open
incident needs the key.

PagerDuty drops a resolve if nothing is open. So an incident that was resolved before its firing was delivered is
triggered and then resolved, as two events; `page_resolved: false` sends the resolve alone, and nobody is called.

An event that PagerDuty calls invalid is an error of the message, unless PagerDuty rejects the routing key by itself.
"""

import json
import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

from services.relay.channels.curl_command import JSON_TYPE, build_posts, quote_address
from services.relay.channels.diagnosis import report_send_errors
from services.relay.channels.pagerduty_event import Action, build_dedup_key, build_event
from services.relay.channels.port import Attempt, ChannelSettings, MessageRate, Progress, Receipt
from services.relay.channels.provider_call import (
    MASK,
    ProviderCall,
    build_in_thread_if_large,
    call_provider,
    check_current_lease,
    mask_reply,
    read_secret,
)
from services.relay.channels.status_error import build_status_error
from services.relay.http_session import HttpSession, encode_json, read_text, translate_connection_errors
from services.relay.model import Message
from services.relay.send_error import SendError, SendReason, SendScope
from services.relay.text import is_resolved
from shared.check import Check, CheckError
from shared.config.file_checks import FileCheck, FileCheckError, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import FilePath
from shared.config.url import ProviderUrl
from shared.net.egress import EgressSettings

_OWN_URL: Final = "https://events.pagerduty.com/v2/enqueue"
_LEFT_OPEN = "left open: another incident with this key is open"
_TRIGGERED: Progress = {"triggered": "yes"}
_PROGRESS: Final[Mapping[Action, Progress]] = {
    "resolve_earlier": {"earlier_resolved": "yes"},
    "trigger": _TRIGGERED,
}
"""What a delivery has done once PagerDuty has the event."""
_KEY_CHECK_EVENT: Final = {"event_action": "resolve", "dedup_key": "keypulse checks its routing key"}
"""No incident has such a key, and PagerDuty drops a resolve where nothing is open."""


def _check_routing_key(secret: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9]{32}", secret):
        raise FileCheckError(
            f"expected 32 letters and digits, and it has {len(secret)} characters",
            "copy the integration key of an integration `Events API V2`",
        )


_EXPECTED_KEY: Final = "expected a file with the integration key of an integration `Events API V2`"
RoutingKeyPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_KEY, _check_routing_key))]
"""A file with a routing key, whose shape `--check` checks."""


class PagerDutySettings(EgressSettings, ChannelSettings):
    """A service of PagerDuty, by the routing key of its Events API v2 integration."""

    # For each integration key: https://community.pagerduty.com/forum/t/monitoring-api-rate-limiting/3318
    shows_values: ClassVar[bool] = True
    provider_rate: ClassVar[MessageRate | None] = MessageRate(120 / 60)
    acknowledges: ClassVar[bool] = True

    kind: Literal["pagerduty"]
    routing_key_file: RoutingKeyPath
    url: ProviderUrl = _OWN_URL
    page_resolved: bool = True
    """Whether somebody is called for an incident that is resolved before its firing was delivered."""

    @property
    def destination(self) -> str:
        """See the base."""
        return "PagerDuty, to the service of its routing key"

    def dedup_scope(self) -> Hashable:
        """A service: the key of one of its incidents is the same for every receiver."""
        return self.url, self.routing_key_file

    def build_curl(self, delivery_id: str, payload: str) -> str | None:  # noqa: ARG002  # the port's
        """See the base."""
        # The routing key is the first value of an event: out of the shell's quotes, and into them again.
        url = quote_address(self.url, _OWN_URL, "PAGERDUTY_PATH")
        masked, variable = f'{{"routing_key":"{MASK}"', """{"routing_key":"'"$PAGERDUTY_ROUTING_KEY"'\""""
        return build_posts(url, [JSON_TYPE], payload, {masked: variable})

    def connect(self, timeout: float) -> "PagerDutyChannel":
        """The channel, with `timeout` seconds for a whole send."""
        return PagerDutyChannel(self, timeout)


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str


class PagerDutyChannel:
    """Sends events to one service of PagerDuty."""

    def __init__(self, settings: PagerDutySettings, timeout: float, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._timeout = timeout
        self._clock = clock
        self._routing_key = SecretFile(settings.routing_key_file)
        self._session = HttpSession("PagerDuty", check_current_lease, settings)

    async def send(self, attempt: Attempt) -> Receipt:
        """Triggers, acknowledges or resolves the incident; the receipt holds its `dedup_key` and PagerDuty's `status`.

        Once PagerDuty has an acknowledgement, the receipt also has its time, as `acknowledged`.
        """
        message = attempt.message
        actions = self._list_actions(message, attempt.progress)
        receipt: Receipt = {"dedup_key": build_dedup_key(attempt.message.event), "status": _LEFT_OPEN}
        async with call_provider(attempt, "PagerDuty", self._timeout) as call:
            for number, action in enumerate(actions):
                if number:
                    await attempt.save_progress(_PROGRESS[actions[number - 1]])
                receipt = await self._send_event(call, message, action)
        return {**receipt, "acknowledged": message.task.acknowledgement} if "acknowledge" in actions else receipt

    def render_payload(self, message: Message) -> str:
        """The events, each on a line, with the routing key masked."""
        payloads = (encode_json(build_event(message, action)) for action in self._list_actions(message, {}))
        return "\n".join(_add_routing_key(MASK, each) for each in payloads)

    def read_secret_versions(self) -> Hashable:
        """Changes with the file of the routing key, and those of proxy and authorities."""
        return self._routing_key.read_stamp(), self._session.read_file_stamps()

    def list_checks(self, key: str) -> Sequence[Check]:
        """Whether the Events API answers; nothing but an event shows whether PagerDuty knows the routing key."""
        return [Check(f"{key} Events API", self._check_api)]

    async def _check_api(self) -> str:
        with report_send_errors(), translate_connection_errors("PagerDuty"):
            async with self._session.open().post(self._settings.url, json={}) as response:  # the empty object: no event
                answer = _Reply(response.status, response.headers, await read_text(response))
        if answer.status != 400 or not _parse_reply(answer.text):
            raise CheckError(
                f"what answers is not PagerDuty's Events API (HTTP {answer.status})", "correct `url`, or leave it out"
            )
        return "answers; only send-test shows whether PagerDuty knows the routing key"

    async def close(self) -> None:
        """Closes its connections."""
        await self._session.close()

    def _list_actions(self, message: Message, progress: Progress) -> tuple[Action, ...]:
        """The events that are still to be sent."""
        task = message.task
        if is_resolved(message.event):
            triggers = task.firing_undelivered and self._settings.page_resolved and progress != _TRIGGERED
            end: tuple[Action, ...] = () if task.keep_open else ("resolve",)
        elif task.acknowledgement:
            triggers = not task.is_repeat and progress != _TRIGGERED
            end = ("acknowledge",)
        else:
            triggers, end = True, ()
        resolves_earlier = triggers and task.resolves_earlier and not progress
        beginning: tuple[Action, ...] = ("resolve_earlier",) if resolves_earlier else ()
        return (*beginning, *(("trigger",) if triggers else ()), *end)

    async def _send_event(self, call: ProviderCall, message: Message, action: Action) -> Receipt:
        event = await build_in_thread_if_large(message, lambda: build_event(message, action))
        key, payload = read_secret(self._routing_key), encode_json(event)
        call.before_request(_add_routing_key(MASK, payload))
        answer = await self._post_event(key, payload)
        call.record_reply(f"HTTP {answer.status} {answer.text}", key)
        reply = _parse_reply(answer.text)
        if answer.status == 202:
            return {"dedup_key": event["dedup_key"], "status": mask_reply(str(reply.get("status", "")), key)}
        detail, about_the_key = _explain_rejection(answer.status, reply, key)
        if about_the_key and await self._is_key_invalid(key):
            raise SendError(SendReason.UNAUTHORIZED, SendScope.CHANNEL, detail)
        raise build_status_error(answer.status, answer.headers, detail, self._clock())

    async def _is_key_invalid(self, key: str) -> bool:
        """Whether the routing key is wrong, by an event that holds nothing else, and that PagerDuty drops.

        The rejection of a whole event cannot decide that: it may quote an alert.

        Raises:
            SendError: PagerDuty answers neither.
        """
        answer = await self._post_event(key, encode_json(_KEY_CHECK_EVENT))
        if answer.status == 202:
            return False
        detail, about_the_key = _explain_rejection(answer.status, _parse_reply(answer.text), key)
        if answer.status != 400:
            raise build_status_error(answer.status, answer.headers, detail, self._clock())
        return about_the_key

    async def _post_event(self, key: str, event_json: str) -> "_Reply":
        headers, body = {"Content-Type": "application/json"}, _add_routing_key(key, event_json).encode()
        with translate_connection_errors("PagerDuty"):
            async with self._session.open().post(self._settings.url, data=body, headers=headers) as response:
                return _Reply(response.status, response.headers, await read_text(response))


def _add_routing_key(key: str, event_json: str) -> str:
    """An event as JSON, with its routing key."""
    return f'{{"routing_key":{json.dumps(key)},{event_json[1:]}'


def _parse_reply(text: str) -> dict[str, Any]:
    """The answer as an object; empty if it is none: the status alone decides then."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _explain_rejection(status: int, reply: dict[str, Any], key: str) -> tuple[str, bool]:
    """What PagerDuty has against an event, in one sentence, and whether it is the routing key."""
    errors = reply.get("errors")
    cause = "; ".join(map(str, errors)) if isinstance(errors, list) and errors else str(reply.get("message", ""))
    detail = f"PagerDuty answered HTTP {status}" + (f": {mask_reply(cause, key)}" if cause else "")
    # PagerDuty replies: Invalid routing key. Or: Length of 'routing_key' is incorrect (should be 32 characters).
    return detail, status == 400 and "routing" in cause.lower() and "key" in cause.lower()
