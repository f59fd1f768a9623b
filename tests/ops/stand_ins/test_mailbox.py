"""The stand-in mail server, through aiosmtplib."""

import asyncio
from email.message import EmailMessage

import aiosmtplib
import pytest

from ops.demo.stand_ins.app import StandIns, run_stand_ins
from ops.demo.stand_ins.provider_faults import FaultKind, Provider, ProviderFault


def mail(without: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "keypulse <alerts@example.org>"
    message["To"] = "secops@example.org"
    message["Subject"] = "Schlüssel 🔑"
    message["Message-ID"] = "<1@example.org>"
    if without:
        del message[without]
    message.set_content("ledger is down\n")
    message.add_alternative("<p>ledger is <b>down</b></p>\n", subtype="html")
    return message


async def send(stand_ins: StandIns, message: EmailMessage, *recipients: str) -> dict[str, aiosmtplib.SMTPResponse]:
    refused, _ = await aiosmtplib.send(
        message,
        hostname=stand_ins.smtp.host,
        port=stand_ins.smtp.port,
        start_tls=False,
        recipients=list(recipients) or None,
        timeout=20,
    )
    return refused


async def test_a_mail_arrives_with_both_its_bodies_and_its_headers(stand_ins: StandIns) -> None:
    await send(stand_ins, mail(), "oncall@example.org", "secops@example.org")
    (arrived,) = stand_ins.mailbox.get_state()
    assert arrived["to"] == ["oncall@example.org", "secops@example.org"]
    assert arrived["from"] == "keypulse <alerts@example.org>"
    assert (arrived["subject"], arrived["message_id"]) == ("Schlüssel 🔑", "<1@example.org>")
    assert arrived["text"].strip() == "ledger is down"
    assert arrived["html"].strip() == "<p>ledger is <b>down</b></p>"
    assert arrived["headers"]["To"] == "secops@example.org"


async def test_a_mail_without_html_has_only_text(stand_ins: StandIns) -> None:
    message = EmailMessage()
    message["From"], message["Message-ID"] = "alerts@example.org", "<2@example.org>"
    message.set_content("only text")
    await send(stand_ins, message, "secops@example.org")
    assert stand_ins.mailbox.mails[0].html == ""


async def test_a_charset_that_does_not_exist_costs_only_that_part(stand_ins: StandIns) -> None:
    message = mail()
    plain = message.get_body(("plain",))
    assert plain is not None
    plain.replace_header("Content-Type", 'text/plain; charset="klingon"')
    await send(stand_ins, message)
    assert stand_ins.mailbox.mails[0].text == "(this part cannot be decoded)"
    assert "down" in stand_ins.mailbox.mails[0].html


@pytest.mark.parametrize("header", ["From", "Message-ID"])
async def test_a_mail_without_a_header_that_it_needs_is_refused(stand_ins: StandIns, header: str) -> None:
    message = mail(without=header)
    async with aiosmtplib.SMTP(hostname=stand_ins.smtp.host, port=stand_ins.smtp.port, start_tls=False) as client:
        with pytest.raises(aiosmtplib.SMTPDataError) as caught:
            await client.sendmail("alerts@example.org", ["secops@example.org"], message.as_bytes())
    assert caught.value.code == 550
    assert header in caught.value.message
    assert not stand_ins.mailbox.mails


async def test_addresses_that_are_none_are_refused(stand_ins: StandIns) -> None:
    async with aiosmtplib.SMTP(hostname=stand_ins.smtp.host, port=stand_ins.smtp.port, start_tls=False) as client:
        await client.ehlo()
        code, _ = await client.execute_command(b"MAIL", b"FROM:<nowhere>")
        assert code == 501
        await client.mail("alerts@example.org")
        code, _ = await client.execute_command(b"RCPT", b"TO:<nowhere>")
        assert code == 501


async def test_a_mail_over_25_mb_is_refused_before_it_is_sent(stand_ins: StandIns) -> None:
    async with aiosmtplib.SMTP(hostname=stand_ins.smtp.host, port=stand_ins.smtp.port, start_tls=False) as client:
        with pytest.raises(aiosmtplib.SMTPSenderRefused) as caught:
            await client.mail("alerts@example.org", options=[f"SIZE={25 * 1024 * 1024 + 1}"])
    assert caught.value.code == 552


async def test_one_refused_recipient_does_not_cost_the_others_their_mail(stand_ins: StandIns) -> None:
    stand_ins.faults.add(
        ProviderFault(provider=Provider.SMTP, kind=FaultKind.REFUSE_RECIPIENT, recipient="Gone@example.org", count=1)
    )
    refused = await send(stand_ins, mail(), "gone@example.org", "secops@example.org")
    assert refused["gone@example.org"].code == 550
    assert stand_ins.mailbox.mails[0].to == ["secops@example.org"]
    assert await send(stand_ins, mail(), "gone@example.org") == {}  # the fault was for once


async def test_a_recipient_can_be_refused_for_now_only(stand_ins: StandIns) -> None:
    fault = ProviderFault(
        provider=Provider.SMTP, kind=FaultKind.REFUSE_RECIPIENT, recipient="busy@example.org", status=450
    )
    stand_ins.faults.add(fault)
    with pytest.raises(aiosmtplib.SMTPRecipientsRefused) as caught:
        await send(stand_ins, mail(), "busy@example.org")
    assert caught.value.recipients[0].code == 450


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ProviderFault(provider=Provider.SMTP, kind=FaultKind.STATUS), 451),
        (ProviderFault(provider=Provider.SMTP, kind=FaultKind.STATUS, status=554, error="spam"), 554),
        (ProviderFault(provider=Provider.SMTP, kind=FaultKind.RATE_LIMIT), 450),
    ],
)
async def test_a_fault_answers_the_mail_with_its_code_and_keeps_nothing(
    stand_ins: StandIns, fault: ProviderFault, code: int
) -> None:
    stand_ins.faults.add(fault)
    with pytest.raises(aiosmtplib.SMTPDataError) as caught:
        await send(stand_ins, mail())
    assert caught.value.code == code
    assert not stand_ins.mailbox.mails


async def test_a_lost_answer_breaks_the_connection_after_the_mail_was_taken(stand_ins: StandIns) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SMTP, kind=FaultKind.LOST_ANSWER, count=1))
    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await send(stand_ins, mail())
    assert len(stand_ins.mailbox.mails) == 1


async def test_a_slow_answer_comes_late_to_a_mail_that_was_taken(stand_ins: StandIns) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SMTP, kind=FaultKind.SLOW_ANSWER, seconds=3600, count=1))
    sending = asyncio.ensure_future(send(stand_ins, mail()))
    async with asyncio.timeout(20):
        while not stand_ins.mailbox.mails:
            await stand_ins.changes.wait_for_change(stand_ins.changes.version, 5)
    assert not sending.done()
    stand_ins.faults.clear()
    assert await sending == {}


async def test_a_mail_that_hangs_is_not_taken_and_healing_ends_the_wait(stand_ins: StandIns) -> None:
    stand_ins.faults.add(ProviderFault(provider=Provider.SMTP, kind=FaultKind.HANG, count=1))
    sending = asyncio.ensure_future(send(stand_ins, mail()))
    async with asyncio.timeout(20):
        while stand_ins.faults.get_state():  # until the mail met the fault
            await stand_ins.changes.wait_for_change(stand_ins.changes.version, 5)
    assert not sending.done()
    stand_ins.faults.clear()
    with pytest.raises(aiosmtplib.SMTPServerDisconnected):
        await sending
    assert not stand_ins.mailbox.mails


async def test_a_client_that_stays_connected_does_not_hold_up_the_stop() -> None:
    async with asyncio.timeout(20):
        async with run_stand_ins() as stand_ins:
            client = aiosmtplib.SMTP(hostname=stand_ins.smtp.host, port=stand_ins.smtp.port, start_tls=False)
            await client.connect()
        with pytest.raises(aiosmtplib.SMTPServerDisconnected):
            await client.noop()
    client.close()
