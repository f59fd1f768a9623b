"""What is true of every kind of channel: the tests iterate over the registry, so a new kind is tested at once."""

import gc
import logging
import re
import tomllib
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from services.relay.channels.port import DeliveryLeaseLostError, SendError
from services.relay.model import Message
from shared.config.settings import Address
from tests.relay.channels.conftest import Providers
from tests.relay.channels.digests import Named, digest_of
from tests.relay.channels.doubles import find_double
from tests.relay.channels.examples import (
    HOSTILE,
    HUGE,
    KINDS,
    NASTY,
    OWN_KINDS,
    SECRET,
    change,
    critical,
    detailed,
    example,
    message,
    of_rules,
    rotate,
    settings,
    with_text,
)
from tests.relay.channels.kinds import (
    EVERY_KIND,
    EVERY_KIND_WITH_A_SECRET_FILE,
    EVERY_KIND_WITH_A_URL,
    EVERY_KIND_WITH_DIGESTS,
    EVERY_REMOTE_KIND,
    HTTP_KINDS,
    REMOTE_KINDS,
    failure,
    render_text,
    unused_address,
)
from tests.relay.channels.recording_attempt import Recorded, send

_ESCAPE = "escape what is in the message, or use `text.chat`"


@EVERY_KIND
async def test_no_text_and_no_size_is_refused(kind: str, secret_file: Path, providers: Providers) -> None:
    channel = settings(providers.example(kind, secret_file)).connect(20)
    refused = []
    for text, alerts in [*product(NASTY, [1]), *product(HUGE, [1, 60])]:
        before = len(providers.arrived(kind))
        try:
            receipt = await send(channel, critical(change(with_text(text, alerts), remark=text)))
        except SendError as error:
            refused.append((text[:80], alerts, str(error)))
        else:
            assert receipt
            assert len(providers.arrived(kind)) == before + 1, (text[:80], alerts)
    await channel.close()
    assert refused == []


@EVERY_KIND
async def test_a_message_of_thirty_rules_arrives_and_says_what_matters(
    kind: str, secret_file: Path, providers: Providers
) -> None:
    one = await _deliver(kind, of_rules(30), secret_file, providers)
    for text in ("KMSCryptoModeNotKMS", "Summary-00", *(["#security"] if kind != "log" else [])):
        assert text in one, "show `view.subject`, each of `view.parts` as far as it fits, and `view.contacts`"
    missing = sum(f"Summary-{number:02}" not in one for number in range(30))
    counted = re.search(r"… and (\d+) more firing|unlisted_count\W+(\d+)", one.replace("\\u2026", "…"))
    said = int(next(filter(None, counted.groups()))) if counted else 0
    assert said >= missing, "say how many alerts it leaves out: `format_more`, or `text.chat`"


@pytest.mark.parametrize("kind", ["email", "pagerduty", "webhook", "log"])  # the others show a few labels, cut
def test_labels_whose_names_agree_once_they_are_cut_are_all_there(kind: str) -> None:
    event = message().event
    own = {f"{'n' * 600}{letter}": f"value-{letter}" for letter in "abc"}
    payload = render_text(kind, message(replace(event, alerts=(replace(event.alerts[0], labels=own),))))
    assert [value for value in own.values() if value not in payload] == []


@EVERY_KIND_WITH_DIGESTS
@pytest.mark.parametrize("text", ["permission_denied: backend cannot encrypt", *HOSTILE, *HUGE])
async def test_a_digest_names_every_incident_and_all_that_they_say_is_text(
    kind: str, text: str, secret_file: Path, providers: Providers
) -> None:
    count = KINDS[kind].digest_size
    digest = digest_of(Named(f"Incident-{number:03} {text}", f"service {number % 3} {text}") for number in range(count))
    one = await _deliver(kind, digest, secret_file, providers)
    absent = [number for number in range(count) if f"Incident-{number:03}" not in one]
    assert not absent, "show `message.digest` by `format_digest` or `text.chat`, or make `digest_size` smaller"
    assert find_double(kind).find_live(render_text(kind, digest)) == [], _ESCAPE


@EVERY_KIND
@pytest.mark.parametrize("text", HOSTILE)
def test_what_an_alert_says_mentions_nobody_and_hides_no_address(kind: str, text: str) -> None:
    of = change(critical(detailed(change(with_text(text), remark=text), text)), excerpt=None)  # which the team wrote
    payload = render_text(kind, of)
    assert re.search("evil|everyone", payload)
    assert find_double(kind).find_live(payload) == [], _ESCAPE


async def _deliver(kind: str, of: Message, secret_file: Path, providers: Providers) -> str:
    """What arrives of a message, which is refused if it is over a limit of the provider."""
    channel = settings(providers.example(kind, secret_file)).connect(20)
    try:
        await send(channel, of)
    finally:
        await channel.close()
    (one,) = providers.arrived(kind)
    return one


@EVERY_KIND
async def test_what_alertmanager_sends_arrives_with_its_links(
    kind: str, secret_file: Path, providers: Providers
) -> None:
    for number, payload in enumerate(("01-firing-1", "03-resolved-1", "07-firing-3", "09-firing-5", "11-firing-1"), 1):
        channel = settings(providers.example(kind, secret_file)).connect(5)
        receipt = await send(channel, message(payload))
        await channel.close()
        assert all(isinstance(value, str) for value in receipt.values())
        assert SECRET not in str(receipt)
        arrived = providers.arrived(kind)
        assert len(arrived) == number, payload
        for address in ("KMS_OPERATIONS.md", "grafana.example.org"):
            assert address in arrived[-1], f"show the links of each of `view.parts`; {payload}"
    gc.collect()  # an unclosed session would speak up now


@EVERY_KIND
async def test_what_goes_out_is_logged_before_it_does_and_the_answer_after_it(
    kind: str, secret_file: Path, providers: Providers
) -> None:
    class Watching(Recorded):
        def before_request(self, payload: str) -> None:
            assert providers.arrived(kind) == []
            assert self.answers == []
            super().before_request(payload)

        def record_reply(self, answer: str) -> None:
            assert len(providers.arrived(kind)) == 1
            super().record_reply(answer)

    channel = settings(providers.example(kind, secret_file)).connect(5)
    attempt = Watching(message())
    await channel.send(attempt)
    await channel.close()
    assert attempt.payloads == [channel.render_payload(message())]
    assert "KMSCryptoModeNotKMS" in attempt.payloads[0]
    assert len(attempt.answers) == 1
    assert SECRET not in f"{attempt.payloads} {attempt.answers}"


@EVERY_KIND
def test_the_next_attempt_is_the_same_message(kind: str, secret_file: Path) -> None:
    channel = settings(example(kind, secret_file, unused_address())).connect(5)
    retry = change(message(), age=3600.0, lease_ends=2.0, maybe_sent=True)
    assert channel.render_payload(retry) == channel.render_payload(message())


@EVERY_KIND
async def test_nothing_goes_out_once_the_lease_is_lost(kind: str, secret_file: Path, providers: Providers) -> None:
    channel = settings(providers.example(kind, secret_file)).connect(5)
    with pytest.raises(DeliveryLeaseLostError):
        await channel.send(Recorded(message(), lease_lost=True))
    await channel.close()
    assert providers.arrived(kind) == []


@EVERY_KIND
def test_a_changed_secret_shows_without_being_shown(kind: str, secret_file: Path) -> None:
    channel = settings(example(kind, secret_file, unused_address())).connect(5)
    before = channel.read_secret_versions()
    assert channel.read_secret_versions() == before
    rotate(secret_file, "rotated")
    after = channel.read_secret_versions()
    secret_file.unlink()
    versions = channel.read_secret_versions()
    assert len({before, after, versions}) == (3 if kind in REMOTE_KINDS else 1)
    assert "rotated" not in str(after)


@EVERY_KIND
def test_what_is_for_people_merges_what_waits_and_has_a_rate(kind: str) -> None:
    of = KINDS[kind]
    assert of.merges_waiting is of.uses_templates is (kind not in {"webhook", "log"})
    has_rate = kind not in {"webhook", "log", "email"}
    assert (of.provider_rate is not None) is has_rate, "set `provider_rate`, the provider's documented limit"


def test_every_kind_is_asked_for_each_status_or_speaks_no_http() -> None:
    assert KINDS.keys() - {*HTTP_KINDS} == {"email", "log"}, "derive its settings from HttpChannelSettings"


def test_every_kind_is_independent_of_the_others() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["name"] == "channels are independent of each other"]
    modules = {KINDS[kind].__module__.removesuffix(".channel") for kind in OWN_KINDS}
    assert set(contract["modules"]) == modules, "name its module in pyproject.toml"


@EVERY_KIND
async def test_what_the_relay_itself_has_to_say_arrives(kind: str, secret_file: Path, providers: Providers) -> None:
    channel = settings(providers.example(kind, secret_file)).connect(5)
    event = replace(message("03-resolved-1").event, remark="Ended while silenced.")
    await send(channel, message(event, remark="Here because slack is down."))
    await channel.close()
    (one,) = providers.arrived(kind)
    assert "Here because slack is down. Ended while silenced." in one, "show `view.remark`"


@EVERY_KIND
async def test_an_alert_that_is_over_says_so_and_when_it_fired(
    kind: str, secret_file: Path, providers: Providers
) -> None:
    channel = settings(providers.example(kind, secret_file)).connect(5)
    await send(channel, message("03-resolved-1"))
    await channel.close()
    (one,) = providers.arrived(kind)
    one = re.sub(r"<!date\^[0-9]+\^[^|>]*\|([^>]*)>", r"\1", one)  # Slack shows it in the reader's zone
    if kind == "webhook":  # for programs
        assert '"starts_at":"2026-11-24T22:46:10' in one
        assert '"ends_at":"2026-11-24T22:46:18' in one
        return
    state = "" if kind.startswith("slack") else "resolved; "  # which Slack has at the beginning of the line
    period = f"{state}fired from 2026-11-24 22:46:10 UTC to 2026-11-24 22:46:18 UTC (8 s)"
    # In both parts of a mail.
    assert one.count(period) == (2 if kind == "email" else 1), f"the payload must have this as it is: {period}"


@EVERY_REMOTE_KIND
async def test_no_log_contains_the_secret(
    kind: str, secret_file: Path, providers: Providers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    channel = settings(providers.example(kind, secret_file)).connect(5)
    await send(channel, message())
    await channel.close()
    await failure(kind, secret_file, unused_address())
    assert SECRET not in str([record.getMessage() for record in caplog.records])


@EVERY_KIND_WITH_A_URL
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://hooks.example.org/", "plaintext"),
        ("http://10.0.0.1/", "plaintext"),
        ("ftp://127.0.0.1/", "such as https"),
        ("https://", "such as https"),
        ("https://user:password@example.org/", "without a user"),
        ("https://example.org/a b", "such as https"),
        ("https://[::1/", "such as https"),
        ("https://example.org:port/", "such as https"),
    ],
)
def test_an_address_that_would_give_the_secret_away_is_refused(
    kind: str, url: str, expected: str, secret_file: Path
) -> None:
    values = example(kind, secret_file, Address("127.0.0.1", 1))
    key = "api_url" if "api_url" in values else "url"
    with pytest.raises(ValueError, match=expected):
        settings({**values, key: url})


@EVERY_KIND_WITH_A_SECRET_FILE
@pytest.mark.parametrize("allowed", [False, True])
def test_plaintext_leaves_this_machine_only_where_that_is_allowed(kind: str, allowed: bool, secret_file: Path) -> None:
    values = {**example(kind, secret_file, Address("stand-ins", 1)), "allow_remote_insecure": allowed}
    if allowed:
        settings(values)
    else:
        with pytest.raises(ValueError, match="plaintext"):
            settings(values)


def test_an_unknown_kind_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match=", ".join(f"'{kind}'" for kind in KINDS if kind != "slack_webhook")):
        settings({"kind": "pigeon"})
