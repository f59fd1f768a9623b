"""Where a webhook is posted to: an address may be a secret, and is read and kept as one."""

from pathlib import Path

import pytest
from aiohttp import web

from services.relay.channels.port import SendReason, SendScope
from tests.relay.channels.conftest import Answering, OpenChannel
from tests.relay.channels.examples import message, rotate, settings
from tests.relay.channels.kinds import unused_address
from tests.relay.channels.recording_attempt import Recorded, refuse

TARGET = "/services/T0123456789/B-geheim-geheim?key=0123456789abcdef"


@pytest.fixture
def url_file(tmp_path: Path) -> Path:
    return tmp_path / "url"


@pytest.mark.parametrize(("allowed", "reason"), [(False, SendReason.MISCONFIGURED), (True, SendReason.CONNECTION)])
async def test_plaintext_to_an_address_in_a_file_leaves_this_machine_only_where_that_is_allowed(
    allowed: bool, reason: SendReason, url_file: Path, open_channel: OpenChannel
) -> None:
    rotate(url_file, "http://absent.invalid/")
    channel = open_channel({"kind": "webhook", "url_file": url_file, "allow_remote_insecure": allowed})
    failed = await refuse(channel)
    assert failed.reason is reason


@pytest.mark.parametrize("given", ["url", "url_file"])
@pytest.mark.parametrize(
    "reported", ["http://{host}{target}", "nothing at {target}", "no team T0123456789", "B-geheim-geheim is gone"]
)
async def test_an_answer_that_repeats_the_address_does_not_bring_it_into_the_record(
    given: str, reported: str, url_file: Path, answering: Answering, open_channel: OpenChannel
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=404, text=reported.format(host=request.host, target=request.path_qs))

    url = f"http://{await answering(answer)}{TARGET}"
    rotate(url_file, url)
    attempt = Recorded(message())
    channel = open_channel({"kind": "webhook", given: url if given == "url" else url_file})
    raised = await refuse(channel, attempt)
    assert "[secret]" in str(raised)
    texts = f"{raised!r} {raised!s} {attempt}"
    assert not [part for part in ("T0123456789", "geheim", "0123456789abcdef") if part in texts]


@pytest.mark.parametrize(
    ("content", "reason", "expected"),
    [
        (None, SendReason.UNAUTHORIZED, "No such file or directory"),
        ("", SendReason.UNAUTHORIZED, "is empty"),
        ("hooks.example.org/geheim", SendReason.MISCONFIGURED, "expected a URL such as https://HOST/PATH"),
        ("http://hooks.example.org/geheim", SendReason.MISCONFIGURED, "expected https://"),
        ("https://u:geheim@hooks.example.org/", SendReason.MISCONFIGURED, "expected a URL such as https://HOST/PATH"),
    ],
)
async def test_a_file_without_an_address_is_the_channels_error_until_it_is_fixed(
    content: str | None, reason: SendReason, expected: str, url_file: Path, open_channel: OpenChannel
) -> None:
    if content is not None:
        rotate(url_file, content)
    channel = open_channel({"kind": "webhook", "url_file": url_file})
    unusable = await refuse(channel)
    assert (unusable.reason, unusable.scope) == (reason, SendScope.CHANNEL)
    assert str(unusable).startswith(f"{url_file}: {expected}")
    assert "geheim" not in str(unusable)
    rotate(url_file, f"http://{unused_address()}/")
    second = await refuse(channel)
    assert second.reason is SendReason.CONNECTION


@pytest.mark.parametrize("given", [{}, {"url": "https://example.org/", "url_file": "f"}])
def test_an_address_is_given_either_as_url_or_as_url_file(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected either `url` or `url_file`"):
        settings({"kind": "webhook", **given})
