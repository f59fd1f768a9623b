"""A signed webhook, verified as docs/configuration/channels.md shows it."""

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.relay.channels.port import SendReason, SendScope
from services.relay.channels.webhook import WebhookChannel, WebhookSettings, build_signature_headers
from shared.config.file_checks import check_files
from tests.relay.channels.conftest import Answering
from tests.relay.channels.examples import message, rotate, settings
from tests.relay.channels.kinds import unused_address
from tests.relay.channels.recording_attempt import refuse, send

ROOT = Path(__file__).parents[3]
NOW = 1_790_000_000
OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
Verify = Callable[[str, Mapping[str, str], bytes], bool]


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Verify:
    """The function of the documentation, at NOW."""
    page = (ROOT / "docs/configuration/channels.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102  # what people copy
    monkeypatch.setattr("time.time", lambda: float(NOW))
    found: Verify = names["verify"]
    return found


async def test_a_receiver_can_verify_each_attempt_while_the_key_is_rotated(
    secret_file: Path, answering: Answering, verify: Verify
) -> None:
    requests: list[tuple[dict[str, str], bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        requests.append(({key.lower(): value for key, value in request.headers.items()}, await request.read()))
        return web.Response(status=204)

    values = {"kind": "webhook", "url": f"http://{await answering(answer)}/", "signing_key_file": secret_file}
    channel = WebhookChannel(WebhookSettings.model_validate(values), 5, clock=lambda: NOW + 0.9)
    versions = set()
    for content in (OLD, f"{OLD}\n{NEW}", NEW):
        rotate(secret_file, f"# made for the ticket system\n{content}\n")
        versions.add(channel.read_secret_versions())
        await send(channel, message())
    assert len(versions) == 3
    await channel.close()
    by_key = [[verify(key, headers, body) for key in (OLD, NEW)] for headers, body in requests]
    assert by_key == [[True, False], [True, True], [False, True]]
    headers, body = requests[0]
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == (headers["idempotency-key"], str(NOW))
    assert not verify(OLD, headers, body + b" ")
    for name, value in (("webhook-id", "another"), ("webhook-timestamp", str(NOW - 1)), ("webhook-signature", "v1,")):
        assert not verify(OLD, {**headers, name: value}, body)


def test_a_request_that_was_recorded_is_refused_later(verify: Verify) -> None:
    key = base64.b64decode(OLD.removeprefix("whsec_"))
    for age, accepted in ((0, True), (300, True), (301, False), (-301, False)):
        assert verify(OLD, build_signature_headers([key], "id", NOW - age, b"{}"), b"{}") is accepted


def test_the_signature_is_that_of_the_standard() -> None:
    # The example of https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/python/README.md
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = build_signature_headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("content", ["0123456789abcdef" * 2, "whsec_geheim", "whsec_Z2VoZWlt", f"{OLD}\nwhsec_%%%"])
async def test_a_key_that_is_none_is_an_error_of_check_and_of_the_channel(content: str, secret_file: Path) -> None:
    rotate(secret_file, content)
    of = settings({"kind": "webhook", "url": f"http://{unused_address()}/", "signing_key_file": secret_file})
    (problem,) = check_files(of)
    assert (problem.key, problem.startup_policy) == ("signing_key_file", "warns")
    refused = await refuse(of.connect(5))  # which opens no connection
    assert (refused.reason, refused.scope) == (SendReason.UNAUTHORIZED, SendScope.CHANNEL)
    for sentence in (problem.sentence, str(refused)):
        assert sentence == f"{secret_file}: expected whsec_ and base64 of 24 to 64 bytes"
