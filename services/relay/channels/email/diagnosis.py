"""Checks of a mail server: one session, of which each check is a step, and which ends before DATA: nothing is sent."""

from collections.abc import Callable

import aiosmtplib
from aiosmtplib import SMTP

from services.relay.channels.diagnosis import create_read_only_call, report_send_errors
from services.relay.channels.email.smtp_session import (
    SmtpRoute,
    connect_client,
    list_secret_forms,
    quit_session,
    translate_smtp_errors,
)
from services.relay.channels.provider_call import mask_reply, read_secret
from services.relay.send_error import SendReason
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile


class SmtpDiagnosis:
    """The session.

    Args:
        create_client: returns a client without a login; raises SendError.
        route: to the server.
        login: username and the file of the password, if the server wants any.
        sender: the address for MAIL.
        recipients: the addresses for RCPT.
    """

    def __init__(  # what the settings of the channel say
        self,
        create_client: Callable[[], SMTP],
        route: SmtpRoute,
        login: tuple[str, SecretFile] | None,
        sender: str,
        recipients: tuple[str, ...],
    ) -> None:
        self._create_client = create_client
        self._client: SMTP | None = None
        """Set by the first check."""
        self._route = route
        self._login = login
        self._sender = sender
        self._recipients = recipients
        self._call = create_read_only_call()

    def list_checks(self, key: str) -> list[Check]:
        """The steps, each of which needs the one before."""
        connection, login, sender = f"{key} connection", f"{key} login", f"{key} sender"
        file = f"{key}.password_file" if self._login else None
        return [
            Check(connection, self._check_connection, file),
            *([Check(login, self._check_login, connection)] if self._login else []),
            Check(sender, self._check_sender, login if self._login else connection),
            Check(f"{key} recipients", self._check_recipients, sender),
        ]

    def close(self) -> None:
        """End the session."""
        if self._client is not None:
            quit_session(self._client)
            self._client.close()

    async def _check_connection(self) -> str:
        with report_send_errors(), translate_smtp_errors(self._call, (), self._route.tls):
            self._client = self._create_client()
            await connect_client(self._client, self._route)
        return f"{self._route.server} answers, with `tls: {self._route.tls}`"

    @property
    def _session(self) -> SMTP:
        assert self._client is not None  # noqa: S101  # each later check depends on the first
        return self._client

    async def _check_login(self) -> str:
        assert self._login  # noqa: S101  # else there is no such check
        username, file = self._login
        hint = {
            SendReason.UNAUTHORIZED: "correct `username`, or put the current password into `password_file`",
            SendReason.MISCONFIGURED: "leave out `username` and `password_file`, or ask who runs the mail server",
        }
        with report_send_errors(hint):
            password = read_secret(file)
            with translate_smtp_errors(self._call, list_secret_forms(username, password), self._route.tls):
                await self._session.login(username, password)
        return f"{username} is accepted"

    async def _check_sender(self) -> str:
        hint = dict.fromkeys(SendReason, "set a `from` that the server accepts, or `username` and `password_file`")
        with report_send_errors(hint), translate_smtp_errors(self._call, (), self._route.tls):
            await self._session.mail(self._sender)
        return f"{self._sender} is accepted"

    async def _check_recipients(self) -> str:
        refused = []
        with report_send_errors(), translate_smtp_errors(self._call, (), self._route.tls):
            for address in self._recipients:
                try:
                    await self._session.rcpt(address)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused.append(f"{address} ({error.code} {mask_reply(error.message)})")
            await self._session.rset()
        if refused:
            raise CheckError(
                f"the mail server refuses {', '.join(refused)}", "correct `to`; a 4xx may be greylisting, and passes"
            )
        return f"{', '.join(self._recipients)} accepted"
