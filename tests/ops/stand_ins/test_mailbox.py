"""The stand-in mail server, through aiosmtplib."""

from email.message import EmailMessage

import aiosmtplib
import pytest

from ops.demo.stand_ins.app import StandIns
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


@pytest.mark.parametrize("header", ["From", "Message-ID"])
async def test_a_mail_without_a_header_that_it_needs_is_refused(stand_ins: StandIns, header: str) -> None:
    message = mail(without=header)
    async with aiosmtplib.SMTP(hostname=stand_ins.smtp.host, port=stand_ins.smtp.port, start_tls=False) as client:
        with pytest.raises(aiosmtplib.SMTPDataError) as caught:
            await client.sendmail("alerts@example.org", ["secops@example.org"], message.as_bytes())
    assert caught.value.code == 550
    assert header in caught.value.message
    assert not stand_ins.mailbox.mails


async def test_one_refused_recipient_does_not_cost_the_others_their_mail(stand_ins: StandIns) -> None:
    stand_ins.faults.add(
        ProviderFault(provider=Provider.SMTP, kind=FaultKind.REFUSE_RECIPIENT, recipient="Gone@example.org", count=1)
    )
    refused = await send(stand_ins, mail(), "gone@example.org", "secops@example.org")
    assert refused["gone@example.org"].code == 550
    assert stand_ins.mailbox.mails[0].to == ["secops@example.org"]
    assert await send(stand_ins, mail(), "gone@example.org") == {}  # the fault was for once


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
