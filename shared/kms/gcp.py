"""Google Cloud KMS behind the port. The only room of `services` and `shared` that imports google.*.

Every call has `retry=None` and a timeout: with the client's default retry, `encrypt(timeout=1)` against a stalled
server took 57 s and ended without a status. Who calls decides when to try again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError
from google.cloud.kms_v1 import (
    DecryptRequest,
    EncryptRequest,
    KeyManagementServiceAsyncClient,
)
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from shared.kms.checksum import crc32c
from shared.kms.credentials import Lookup, shared_lookup
from shared.kms.provider import Decrypted, Encrypted, KmsError
from shared.kms.reason import Reason, from_status

_RECONNECT: Final = [
    # Without these, gRPC waits up to 2 minutes before it connects again, long after the service is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Without this, a new channel may be given the connection of the one that was just closed because it was dead.
    ("grpc.use_local_subchannel_pool", 1),
]
# Plaintext to an emulator on this machine must not take a way through a proxy that the environment names.
_NO_PROXY: Final = [("grpc.enable_http_proxy", 0)]

_Transport: Final = KeyManagementServiceGrpcAsyncIOTransport

T = TypeVar("T")


class GcpKey:
    """One key of Cloud KMS, or of an emulator where `endpoint` is given with `insecure`."""

    def __init__(
        self, key: str, *, endpoint: str | None = None, insecure: bool = False, lookup: Lookup = shared_lookup
    ) -> None:
        self._key = key
        self._endpoint = endpoint
        self._insecure = insecure
        self._lookup = lookup
        self._client: KeyManagementServiceAsyncClient | None = None
        self._connecting = asyncio.Lock()

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> Encrypted:
        """See the port. `verified_*` is demanded: without it the service may not have looked at our checksums."""
        request = EncryptRequest(
            name=self._key,
            plaintext=plaintext,
            additional_authenticated_data=aad,
            plaintext_crc32c=crc32c(plaintext),
            additional_authenticated_data_crc32c=crc32c(aad),
        )
        answer = await self._ask(lambda client: client.encrypt(request, retry=None, timeout=timeout), timeout)
        if not (answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c):
            raise KmsError(Reason.CRC_MISMATCH, "encrypt: the service did not verify the request's checksums")
        if answer.ciphertext_crc32c is None or answer.ciphertext_crc32c != crc32c(answer.ciphertext):
            raise KmsError(Reason.CRC_MISMATCH, "encrypt: the ciphertext does not match its checksum")
        return Encrypted(answer.ciphertext, answer.name, _name(answer.protection_level))

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> Decrypted:
        """See the port."""
        request = DecryptRequest(
            name=self._key,
            ciphertext=ciphertext,
            additional_authenticated_data=aad,
            ciphertext_crc32c=crc32c(ciphertext),
            additional_authenticated_data_crc32c=crc32c(aad),
        )
        answer = await self._ask(lambda client: client.decrypt(request, retry=None, timeout=timeout), timeout)
        if answer.plaintext_crc32c is None or answer.plaintext_crc32c != crc32c(answer.plaintext):
            raise KmsError(Reason.CRC_MISMATCH, "decrypt: the plaintext does not match its checksum")
        return Decrypted(answer.plaintext, answer.used_primary)

    async def close(self) -> None:
        """Closes the connection; a call under way ends with KmsError."""
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    async def _ask(self, call: Callable[[KeyManagementServiceAsyncClient], Awaitable[T]], timeout: float) -> T:
        client: KeyManagementServiceAsyncClient | None = None
        try:
            # Bounds connecting and calling together; a little over the call's own bound, whose status says more.
            async with asyncio.timeout(timeout + 0.25):
                client = await self._connected()
                return await call(client)
        except TimeoutError:
            failure = KmsError(Reason.TIMEOUT, f"no answer within {timeout:g} s")
        except GoogleAPICallError as error:
            status = error.grpc_status_code.name if error.grpc_status_code else "UNKNOWN"
            failure = KmsError(from_status(status, error.message or ""), error.message or status)
        except GoogleAuthError as error:
            failure = KmsError(Reason.UNAUTHENTICATED, f"Google credentials: {error}")
        except asyncio.CancelledError:
            # gRPC raises it for a call whose connection was closed, although nobody cancelled us.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure = KmsError(Reason.UNAVAILABLE, "the connection was closed during the call")
        if failure.reason is Reason.TIMEOUT and client is not None and client is self._client:
            # Perhaps only this connection is dead: a firewall forgot it, say. gRPC would use it for ever.
            await self.close()
        raise failure

    async def _connected(self) -> KeyManagementServiceAsyncClient:
        # One client for each channel: the transport adds an interceptor to the channel it is given.
        async with self._connecting:
            if self._client is None:
                self._client = KeyManagementServiceAsyncClient(transport=await self._transport())
            return self._client

    async def _transport(self) -> KeyManagementServiceGrpcAsyncIOTransport:
        if self._insecure and self._endpoint:
            return _Transport(channel=grpc.aio.insecure_channel(self._endpoint, options=[*_RECONNECT, *_NO_PROXY]))
        return _Transport(
            host=self._endpoint or _Transport.DEFAULT_HOST,
            credentials=await self._lookup.credentials(),
            channel=_secure_channel,
            always_use_jwt_access=True,  # as the client itself would: no token server between us and KMS
        )


def _secure_channel(host: str, *, options: list[tuple[str, Any]], **arguments: Any) -> grpc.aio.Channel:
    return _Transport.create_channel(host, options=[*options, *_RECONNECT], **arguments)


def _name(value: object) -> str:
    """An enum's name; a value newer than this client is a bare number."""
    return str(getattr(value, "name", value))
