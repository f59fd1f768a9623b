"""The port of sessions: what `authorization` asks of a server whose pages people log in to."""

from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from shared.http.authentication import Session

IGNORED_HEADER_SCOPE_KEY: Final = "keypulse.ignored_proxy_header"
"""The key in a request's scope that says that somebody else sent the header of a trusted proxy."""


class SessionsUnavailableError(Exception):
    """The sessions cannot be read now; the message says why."""


class Sessions(Protocol):
    """Finds sessions, and leads those who have none to the login page."""

    @property
    def uses_https(self) -> bool:
        """Whether browsers reach the server by https, even if a proxy before it ends TLS."""

    def is_public_host(self, request: Request) -> bool:
        """Whether a request came for the server's address, as browsers see it."""

    async def find_session(self, request: Request) -> Session | None:
        """Return the session of a request; None if it has none, or none that is valid now.

        Raises:
            SessionsUnavailableError: the sessions cannot be read.
            SecretUnreadableError: the file of the session's token cannot be read.
        """

    def build_refusal(self, request: Request, status: int, message: str) -> Response | None:
        """Return the answer to a browser, such as a redirect to the login page; None for a program.

        Args:
            request: that is refused.
            status: of the refusal.
            message: one sentence.
        """
