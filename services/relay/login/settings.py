"""The settings of who logs in elsewhere: at a provider of OpenID Connect, or at a proxy in front of the relay."""

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from shared.config.server_settings import Role
from shared.config.settings import Network, SecretPath, Section
from shared.config.url import check_base_url, check_secret_url
from shared.net.egress import EgressSettings

_OTHER_HEADERS: Final = ("authorization", "cookie", "host", "x-csrf-token")


def _check_issuer(url: str) -> str:
    check_secret_url(url)
    check_base_url(url)
    return url  # with its last slash, if it has one: a token names the issuer letter by letter


def _check_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    if "openid" not in scopes:
        raise ValueError("expected openid among them")
    return scopes


def _check_header(name: str) -> str:
    if name.lower() in _OTHER_HEADERS:
        raise ValueError("expected a header of the proxy's own, such as X-Forwarded-User")
    return name.lower()


def _check_proxies(networks: tuple[Network, ...]) -> tuple[Network, ...]:
    if not networks or any(network.prefixlen == 0 for network in networks):
        raise ValueError("expected the proxy's addresses, such as 10.0.0.7/32; whoever sends from them is believed")
    return networks


Header = Annotated[str, Field(pattern="^[A-Za-z0-9-]+$"), AfterValidator(_check_header)]
Roles = Annotated[dict[str, Role], Field(min_length=1)]


class OidcSettings(EgressSettings):
    """A provider of OpenID Connect."""

    issuer: Annotated[str, AfterValidator(_check_issuer)]
    """Its address, below which its discovery document is."""
    client_id: Annotated[str, Field(min_length=1)]
    client_secret_file: SecretPath
    scopes: Annotated[tuple[str, ...], AfterValidator(_check_scopes)] = ("openid", "profile", "email")
    groups_claim: Annotated[str, Field(min_length=1)] = "groups"
    """The claim with a person's groups, in the ID token or the userinfo."""
    roles: Roles
    """Of each group."""


class ProxyLoginSettings(Section):
    """A proxy that names the person in a header."""

    user_header: Header
    groups_header: Header | None = None
    """Groups, separated by commas."""
    from_: Annotated[tuple[Network, ...], AfterValidator(_check_proxies)] = Field(alias="from")
    """The proxy's addresses; a header from any other is ignored."""
    roles: Roles
    """Of each group where there is a groups_header, else of each user."""


def find_role(roles: dict[str, Role], names: Iterable[str]) -> Role | None:
    """Return the highest role of these groups or users; None if none of them has one."""
    found = {roles[name] for name in names if name in roles}
    return max(found, key=list(Role).index, default=None)
