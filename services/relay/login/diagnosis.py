"""Checks of the provider of OpenID Connect: its discovery document and its keys. Nobody logs in."""

from collections.abc import Sequence
from functools import partial

from services.relay.login.oidc import OidcClient, OidcError
from shared.check import Check, CheckError


def list_oidc_checks(client: OidcClient) -> Sequence[Check]:
    """What can be tried without a person."""
    return [
        Check("auth.oidc discovery", partial(_check_discovery, client)),
        Check("auth.oidc keys", partial(_check_keys, client), "auth.oidc discovery"),
    ]


async def _check_discovery(client: OidcClient) -> str:
    try:
        metadata = await client.read_metadata()
    except OidcError as error:
        raise CheckError(
            str(error), "compare `auth.oidc.issuer` with the `issuer` in its /.well-known/openid-configuration"
        ) from None
    if "S256" not in (metadata.code_challenge_methods_supported or ("S256",)):
        raise CheckError("the provider does not support PKCE with S256", "allow it for this client")
    return f"people log in at {metadata.authorization_endpoint}"


async def _check_keys(client: OidcClient) -> str:
    try:
        count = await client.count_keys()
    except OidcError as error:
        raise CheckError(str(error), "see what the provider's `jwks_uri` answers to this machine") from None
    return f"{count} keys of the provider may sign"
