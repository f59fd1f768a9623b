"""A login by OpenID Connect: where the browser goes, and who came back. Authorization code with PKCE, state and nonce.

authlib and joserfc know the protocol; the requests are made here, since their own clients know no egress settings. The
three secrets of an attempt come from one random value in the cookie of each, so several tabs may log in at once, at
any replica. It is signed with its time by a key that all replicas derive from the client's secret: the provider is
asked about no other attempt. A code works once, which the provider sees to.

https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth
"""

import asyncio
import base64
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus

import msgspec
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from pydantic_core import from_json

from services.relay.channels.port import SendError
from services.relay.config import OidcSettings
from services.relay.console.frame import SharedRead
from services.relay.http import HttpSession, translate_connection_errors
from services.relay.login.sessions import (
    ATTEMPT_SECONDS,
    Login,
    LoginAttempt,
    LoginSource,
    OidcError,
    ProviderUnavailableError,
    build_client_credential,
    clean_name,
)
from shared.check import Check, CheckError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import check_secret_url
from shared.http.fair_queue import FairQueue, QueueFullError
from shared.http.untrusted_json import UntrustedJsonError, decode_json

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Of ID tokens: those with the provider's public key, and so neither `none` nor one with a shared secret."""
_REPLY_TIMEOUT: Final = 10.0
_METADATA_SECONDS: Final = 3600.0
"""How long the provider's metadata and keys are kept."""
_KEYS_SECONDS: Final = 60.0
"""Seconds between two reads of the keys where none of them has signed an ID token."""
_LEEWAY_SECONDS: Final = 60
"""By how much the provider's clock may differ."""
_MAX_ANSWER_BYTES: Final = 256 * 1024
"""Of each of the provider's answers; parsed, small values take many times as much."""
_MAX_CALLBACKS: Final = 4
"""Logins that are completed at the same time: each is a request to the provider. Others wait for a slot."""
_MAX_WAITING: Final = 32

T = TypeVar("T")


class UnknownKeyError(OidcError):
    """An ID token is signed by none of the keys that were read."""


class _Metadata(msgspec.Struct):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    code_challenge_methods_supported: tuple[str, ...] | None = None  # many that know PKCE do not say so


class TokenAnswer(msgspec.Struct):
    id_token: str
    access_token: str = ""


_METADATA: Final = msgspec.json.Decoder(_Metadata)
_TOKEN_ANSWER: Final = msgspec.json.Decoder(TokenAnswer)


def verify_id_token(
    answer: TokenAnswer, keys: KeySet, now: float, *, issuer: str, client_id: str, nonce: str
) -> Mapping[str, Any]:
    """Return the claims of an ID token.

    Raises:
        UnknownKeyError: none of these keys has signed it.
        OidcError: it is forged, expired, or for somebody else.
    """
    try:
        registry = JWSRegistry(algorithms=list(ALGORITHMS), strict_check_header=False)
        token = jwt.decode(answer.id_token, keys, registry=registry)
        options = {"iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": client_id}}
        params = {"nonce": nonce, "client_id": client_id, "access_token": answer.access_token}
        claims = CodeIDToken(token.claims, token.header, options, params)
        claims.validate(int(now), _LEEWAY_SECONDS)
    except (InvalidKeyIdError, BadSignatureError):
        raise UnknownKeyError("the provider's ID token is not signed by a key of the provider") from None
    except (JoseError, ValueError, TypeError, KeyError) as error:
        # Its own text may repeat a claim.
        raise OidcError(f"the provider's ID token is not valid: {type(error).__name__}") from None
    return dict(claims)


class OidcClient:
    def __init__(
        self,
        settings: OidcSettings,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._secret = SecretFile(settings.client_secret_file)
        self._session = HttpSession("the provider", egress=settings)
        self._clock = clock
        self._monotonic = monotonic
        self._metadata = SharedRead(self._read_metadata, _METADATA_SECONDS)
        self._keys: tuple[float, KeySet] | None = None
        self._reading_keys = asyncio.Lock()
        self._queue = FairQueue(_MAX_CALLBACKS, _MAX_WAITING)

    def create_attempt(self) -> LoginAttempt:
        """A new one. Raises ProviderUnavailableError if the client's secret cannot be read."""
        begun = f"{secrets.token_urlsafe(32)}.{int(self._clock())}"
        return LoginAttempt(f"{begun}.{self._sign(begun)}")

    def is_valid_attempt(self, attempt: LoginAttempt) -> bool:
        """Whether this client began it, not too long ago. Raises ProviderUnavailableError as `create_attempt` does."""
        begun, _, signature = attempt.value.rpartition(".")
        if not hmac.compare_digest(self._sign(begun).encode(), signature.encode()):
            return False
        return -_LEEWAY_SECONDS <= self._clock() - int(begun.rpartition(".")[2]) <= ATTEMPT_SECONDS

    async def build_authorization_url(self, attempt: LoginAttempt, redirect_uri: str) -> str:
        """Where the browser goes. Raises ProviderUnavailableError."""
        metadata = await self.read_metadata()
        url: str = prepare_grant_uri(
            metadata.authorization_endpoint,
            self.settings.client_id,
            "code",
            redirect_uri=redirect_uri,
            scope=" ".join(self.settings.scopes),
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=create_s256_code_challenge(attempt.code_verifier),
            code_challenge_method="S256",
        )
        return url

    async def complete(self, attempt: LoginAttempt, code: str, redirect_uri: str, peer: str) -> Login:
        """Exchange the code for the person, who calls from the address `peer`. Raises OidcError."""
        try:
            async with self._queue.acquire(peer):
                return await self._complete(attempt, code, redirect_uri)
        except QueueFullError:
            raise ProviderUnavailableError("too many logins are being completed; try again") from None

    async def read_metadata(self) -> _Metadata:
        """The discovery document, an hour old at most. Raises ProviderUnavailableError."""
        return await self._metadata.get()

    async def close(self) -> None:
        await self._session.close()

    async def _read_metadata(self) -> _Metadata:
        url = f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = await self._read_json(_METADATA, "GET", url)
        if metadata.issuer != self.settings.issuer:
            raise ProviderUnavailableError(
                "the discovery document names another issuer; set `auth.oidc.issuer` to exactly its `issuer`"
            )
        endpoints = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri)
        for url in (*endpoints, metadata.userinfo_endpoint or metadata.jwks_uri):
            try:
                check_secret_url(url)
            except ValueError as error:
                raise ProviderUnavailableError(f"the discovery document has an unusable URL: {error}") from None
        return metadata

    async def _complete(self, attempt: LoginAttempt, code: str, redirect_uri: str) -> Login:
        metadata = await self.read_metadata()
        answer = await self._exchange_code(metadata, attempt, code, redirect_uri)
        verify = partial(
            verify_id_token,
            answer,
            now=self._clock(),
            issuer=self.settings.issuer,
            client_id=self.settings.client_id,
            nonce=attempt.nonce,
        )
        try:
            claims = verify(await self.read_keys(_METADATA_SECONDS))
        except UnknownKeyError:  # or the provider has changed its keys
            claims = verify(await self.read_keys(_KEYS_SECONDS))
        groups = claims.get(self.settings.groups_claim)
        if groups is None and metadata.userinfo_endpoint and answer.access_token:
            headers = {"Authorization": f"Bearer {answer.access_token}"}
            userinfo = _parse_object(await self._request("GET", metadata.userinfo_endpoint, headers=headers))
            if userinfo.get("sub") != claims["sub"]:
                raise OidcError("the provider's userinfo is about another person")
            groups = userinfo.get(self.settings.groups_claim)
        return Login(
            name=_find_name(claims),
            source=LoginSource.OIDC,
            credential=build_client_credential(self.settings),
            groups=[each for each in _list_texts(groups) if each in self.settings.roles],
        )

    async def _exchange_code(
        self, metadata: _Metadata, attempt: LoginAttempt, code: str, redirect_uri: str
    ) -> TokenAnswer:
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": attempt.code_verifier,
        }
        headers = {"Accept": "application/json"}
        secret = self._read_secret()
        if "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            # Form-encoded before Base64: https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
            login = f"{quote_plus(self.settings.client_id)}:{quote_plus(secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        else:
            fields |= {"client_id": self.settings.client_id, "client_secret": secret}
        return await self._read_json(_TOKEN_ANSWER, "POST", metadata.token_endpoint, data=fields, headers=headers)

    def _sign(self, begun: str) -> str:
        key = hmac.digest(self._read_secret().encode(), b"keypulse login attempt", "sha256")
        return hmac.digest(key, begun.encode(), "sha256").hex()

    def _read_secret(self) -> str:
        try:
            return self._secret.read_value()
        except SecretUnreadableError as error:
            raise ProviderUnavailableError(f"auth.oidc.client_secret_file: {error}") from None

    async def read_keys(self, max_age: float) -> KeySet:
        """The provider's keys, `max_age` seconds old at most. Raises ProviderUnavailableError."""
        metadata = await self.read_metadata()
        async with self._reading_keys:
            if self._keys is None or self._monotonic() >= self._keys[0] + max_age:
                self._keys = self._monotonic(), _import_keys(await self._request("GET", metadata.jwks_uri))
            return self._keys[1]

    async def _read_json(self, decoder: msgspec.json.Decoder[T], method: str, url: str, **options: Any) -> T:
        try:
            return decode_json(decoder, await self._request(method, url, **options))
        except UntrustedJsonError as error:
            raise ProviderUnavailableError(f"the provider's answer is not that of OpenID Connect: {error}") from None

    async def _request(self, method: str, url: str, **options: Any) -> bytes:
        """The body of a 200. Raises ProviderUnavailableError; OidcError where the provider refuses."""
        try:
            with translate_connection_errors("the provider"):
                async with (
                    asyncio.timeout(_REPLY_TIMEOUT),
                    self._session.open().request(method, url, **options) as response,
                ):
                    body, status = await response.read(), response.status
        except TimeoutError:
            raise ProviderUnavailableError(f"the provider: no answer within {_REPLY_TIMEOUT:g} s") from None
        except SendError as error:
            raise ProviderUnavailableError(str(error)) from None
        if len(body) > _MAX_ANSWER_BYTES:
            raise ProviderUnavailableError(f"the provider's answer is over {_MAX_ANSWER_BYTES} bytes")
        if status == 200:
            return body
        if method == "POST" and 400 <= status < 500:
            raise OidcError(f"the provider refused the code: HTTP {status}{_describe_error(body)}")
        raise ProviderUnavailableError(f"the provider answered HTTP {status}")


def _import_keys(body: bytes) -> KeySet:
    """The keys that may sign; those of other kinds are left out. Raises ProviderUnavailableError."""
    listed = _parse_object(body).get("keys")
    usable = [
        key
        for key in (listed if isinstance(listed, list) else [])
        if isinstance(key, dict) and key.get("kty") in {"RSA", "EC", "OKP"} and key.get("use") != "enc"
    ]
    if not usable:
        raise ProviderUnavailableError("the provider has no key of kind RSA, EC or OKP that may sign")
    try:
        return KeySet.import_key_set({"keys": usable})
    except (JoseError, ValueError, TypeError, KeyError):
        raise ProviderUnavailableError("the provider's keys cannot be read") from None


def _parse_object(body: bytes) -> Mapping[str, Any]:
    try:
        document = from_json(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ProviderUnavailableError("the provider's answer is not a JSON object")
    return document


def _find_name(claims: Mapping[str, Any]) -> str:
    """How the audit names a person: an address that the provider has verified, a login name, or the subject."""
    email = claims.get("email") if claims.get("email_verified") is True else None
    for candidate in (email, claims.get("preferred_username"), claims.get("sub")):
        if name := clean_name(candidate):
            return name
    raise OidcError("the provider's ID token names nobody")


def _list_texts(value: object) -> Sequence[str]:
    """A claim that may be a list, a single text, or something else."""
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _describe_error(body: bytes) -> str:
    """The provider's code of an error; nothing for whatever else may be there."""
    try:
        code = _parse_object(body).get("error")
    except OidcError:
        return ""
    return f", {code}" if isinstance(code, str) and len(code) <= 40 and code.isidentifier() else ""


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
        keys = await client.read_keys(0.0)
    except OidcError as error:
        raise CheckError(str(error), "see what the provider's `jwks_uri` answers to this machine") from None
    return f"{len(keys.keys)} keys of the provider may sign"
