"""The login of one relay with one configuration: its sessions, and its client of the provider."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from services.relay.login.sessions import ConsoleSessions, LoginRules
from services.relay.outbox.engine.store import Store
from shared.http.authorization import Authorizer

if TYPE_CHECKING:
    from services.relay.login.oidc import OidcClient


class LoginService(NamedTuple):
    """What the login page needs."""

    sessions: ConsoleSessions
    authorizer: Authorizer
    oidc: "OidcClient | None"


@asynccontextmanager
async def open_login(rules: LoginRules, store: Store, authorizer: Authorizer) -> AsyncIterator[LoginService]:
    """Lets the authorizer find sessions from now on; closes the connections to the provider at the end."""
    async with AsyncExitStack() as stack:
        oidc = None
        if rules.oidc:
            from services.relay.login.oidc import OidcClient  # noqa: PLC0415  # authlib takes 200 ms, which few need

            oidc = OidcClient(rules.oidc, store.clock)
            stack.push_async_callback(oidc.close)
        sessions = ConsoleSessions(store, rules)
        stack.push_async_callback(sessions.close)
        authorizer.sessions = sessions
        yield LoginService(sessions, authorizer, oidc)
