"""`/acknowledge/INCIDENT`: where the link in a mail leads. Its form acknowledges the episode that the mail is about.

Whoever has the link may do that, and nothing else: see `services.relay.delivery.acknowledge_link`. The audit names the
mail's recipients. A GET changes nothing, also where a scanner follows the link.
"""

from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.relay.acknowledgement.store import MAX_NAME, Acknowledging, EpisodeOverError
from services.relay.config import RelaySettings
from services.relay.console.frame import Console, CredentialRefusedError, View
from services.relay.delivery.acknowledge_link import PATH, AcknowledgeLink, LinkSigner
from services.relay.incidents.queries import IncidentSummary, UnknownIncidentError, read_incident
from services.relay.model import Status
from services.relay.outbox.store import Store
from services.relay.outbox.tables import clean_for_database
from services.relay.text import truncate
from shared.config.secret_file import SecretUnreadableError
from shared.http.access import Authorizer, RefusalReason, get_path_and_query, get_peer
from shared.http.authentication import Caller

_NOT_VALID = "This link is not valid: it is not complete, or the mail's recipients or their channel have changed."
_EXPIRED = "This link has expired. The latest mail of the incident has a newer one."
_OVER = "What the mail is about is over."


class _Mail(NamedTuple):
    link: AcknowledgeLink
    recipients: str

    @property
    def who(self) -> str:
        return truncate(f"mail link to {self.recipients}", MAX_NAME)


class AcknowledgePages:
    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        authorizer: Authorizer,
        acknowledging: Acknowledging,
    ) -> None:
        self._store = store
        self._authorizer = authorizer
        self._acknowledging = acknowledging
        self._signer = LinkSigner(settings.acknowledge_link) if settings.acknowledge_link else None
        self._recipients = {
            name: channel.destination for name, channel in settings.channels.items() if channel.has_acknowledge_link
        }

    def add_routes(self, console: Console) -> None:
        console.public(f"{PATH}{{id}}", self._show, "acknowledge.html.j2")
        console.public(f"{PATH}{{id}}", self._acknowledge, "acknowledge.html.j2", ["POST"])

    async def _show(self, request: Request) -> View:
        try:
            incident = await self._read_open((await self._check(request)).link)
        except CredentialRefusedError as error:
            return self._refuse(request, error)
        return View({"incident": incident, "problem": None})

    async def _acknowledge(self, request: Request) -> Response | View:
        peer = get_peer(request)
        try:
            mail = await self._check(request)
            done = await self._acknowledging.change(
                mail.link.incident_id, episode=mail.link.episode, who=mail.who, via="mail", peer=peer
            )
        except (UnknownIncidentError, EpisodeOverError):
            return self._refuse(request, CredentialRefusedError(_OVER, 410))
        except CredentialRefusedError as error:
            return self._refuse(request, error)
        if done.is_changed:
            await self._authorizer.record_action(
                Caller(mail.who, None), peer, "acknowledge", done.incident_id, is_stored=True
            )
        return RedirectResponse(get_path_and_query(request), status_code=303)

    async def _check(self, request: Request) -> _Mail:
        """What the link authorises. Raises CredentialRefusedError."""
        link = AcknowledgeLink.parse(clean_for_database(request.path_params["id"]), request.query_params)
        recipients = self._recipients.get(link.channel) if link else None
        if link is None or recipients is None or self._signer is None:
            raise CredentialRefusedError(_NOT_VALID, 403, RefusalReason.WRONG)
        try:
            is_valid = await self._signer.is_valid(link, recipients, request.query_params.get("signature", ""))
        except SecretUnreadableError:
            raise CredentialRefusedError(
                "The relay cannot check this link now. See its log.", 503, RefusalReason.UNREADABLE
            ) from None
        if not is_valid:
            raise CredentialRefusedError(_NOT_VALID, 403, RefusalReason.WRONG)
        if self._store.clock() >= link.expires_at:
            raise CredentialRefusedError(_EXPIRED, 410)
        return _Mail(link, recipients)

    async def _read_open(self, link: AcknowledgeLink) -> IncidentSummary:
        """The incident of a link, while its episode is open. Raises CredentialRefusedError."""
        incident = await read_incident(self._store, link.incident_id)
        if incident is None or incident.episode != link.episode or incident.status is not Status.FIRING:
            raise CredentialRefusedError(_OVER, 410)
        return incident

    def _refuse(self, request: Request, error: CredentialRefusedError) -> View:
        if error.reason:
            self._authorizer.refusals.count(get_peer(request) or "unknown", f"{PATH}{{id}}", error.reason)
        values = {"problem": str(error), "incident_id": clean_for_database(request.path_params["id"])}
        return View(values, error.status)
