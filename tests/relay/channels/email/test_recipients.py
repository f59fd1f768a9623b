"""A server that takes some recipients: the others are tried again alone, or named."""

from pathlib import Path

import pytest
import structlog

from services.relay.channels.port import DeliveryLeaseLostError, SendReason, SendScope
from tests.relay.channels.email.mail_server import ONCALL, SECOPS, StartServer, connect
from tests.relay.channels.examples import SECRET, message
from tests.relay.channels.recording_attempt import Recorded, refuse, send


async def test_who_is_refused_for_good_costs_the_others_nothing_and_is_named(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "550 5.1.1 no such user"})
    with structlog.testing.capture_logs() as logged:
        receipt = await send(connect(secret_file, server.address), message())
    assert receipt["rejected_recipients"] == f"{ONCALL} (550 5.1.1 no such user)"
    assert [recipients for recipients, _ in server.accepted] == [[SECOPS]]
    (line,) = logged
    assert (line["log_level"], line["event"], line["rejected_recipients"]) == (
        "warning",
        "mail server rejected recipients",
        receipt["rejected_recipients"],
    )
    assert line["delivery_id"] == message().task.delivery_id


async def test_the_reason_of_a_refusal_is_short_and_contains_no_password(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": f"550 not for {SECRET} {'x' * 300}"})
    receipt = await send(connect(secret_file, server.address), message())
    assert receipt["rejected_recipients"].startswith(f"{ONCALL} (550 not for [secret] xxx")
    assert len(receipt["rejected_recipients"]) < 150


async def test_who_is_put_off_is_retried_alone_after_a_restart_too(secret_file: Path, mail_server: StartServer) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    error = await refuse(connect(secret_file, server.address), first)
    assert (error.reason, error.scope, error.maybe_arrived) == (SendReason.SERVER_ERROR, SendScope.ATTEMPT, False)
    assert str(error) == f"the mail server put off 1 of 2 recipients: {ONCALL} (450 4.2.0 greylisted)"
    assert error.provider_works
    assert first.saved == [{SECOPS: "250"}]
    second = first.create_retry(error)
    # And again, with nothing new to keep but the same; the server still works for others.
    assert (await refuse(connect(secret_file, server.address), second)).provider_works
    server.replies.clear()
    receipt = await connect(secret_file, server.address).send(second.create_retry(error))
    assert "rejected_recipients" not in receipt
    assert [recipients for recipients, _ in server.accepted] == [[SECOPS], [ONCALL]]
    ids = {line for _, content in server.accepted for line in content.splitlines() if line.startswith(b"Message-ID")}
    assert len(ids) == 1


async def test_where_nobody_has_the_mail_yet_all_are_retried(secret_file: Path, mail_server: StartServer) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted", f"RCPT {SECOPS}": "550 5.1.1 not yet"})
    attempt = Recorded(message())
    error = await refuse(connect(secret_file, server.address), attempt)
    assert (error.reason, attempt.saved, attempt.payloads) == (SendReason.SERVER_ERROR, [], [])
    assert not error.provider_works
    server.replies.clear()
    await connect(secret_file, server.address).send(attempt.create_retry(error))
    assert [recipients for recipients, _ in server.accepted] == [[SECOPS, ONCALL]]


async def test_who_was_put_off_and_is_then_refused_does_not_undo_the_rest(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    error = await refuse(connect(secret_file, server.address), first)
    server.replies = {f"RCPT {ONCALL}": "550 5.1.1 no such user"}
    receipt = await connect(secret_file, server.address).send(first.create_retry(error))
    assert receipt["rejected_recipients"] == f"{ONCALL} (550 5.1.1 no such user)"
    assert len(server.accepted) == 1


async def test_a_mail_whose_last_recipients_were_taken_from_the_configuration_is_delivered(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})
    first = Recorded(message())
    error = await refuse(connect(secret_file, server.address), first)
    last = first.create_retry(error)
    receipt = await connect(secret_file, server.address, to=[SECOPS]).send(last)
    assert receipt["answer"] == ""
    assert last.payloads == []
    assert len(server.accepted) == 1


async def test_a_lease_that_is_lost_after_the_mail_was_taken_keeps_nothing(
    secret_file: Path, mail_server: StartServer
) -> None:
    server = await mail_server(**{f"RCPT {ONCALL}": "450 4.2.0 greylisted"})

    class Overtaken(Recorded):
        def before_request(self, payload: str) -> None:
            super().before_request(payload)
            self.lease_lost = True

    attempt = Overtaken(message())
    with pytest.raises(DeliveryLeaseLostError):
        await connect(secret_file, server.address).send(attempt)
    assert (len(server.accepted), attempt.saved) == (1, [])
