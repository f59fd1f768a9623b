"""Measures the connection to a service, phase by phase, on a connection of its own: is it the network, or the service?

DNS, TCP, perhaps a proxy, and TLS come one after the other; the first that fails says so in one sentence and ends the
measurement. By a proxy, DNS and TCP are those of the proxy.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Final

from shared.config.settings import Address
from shared.kms.port import ConnectivityPhase
from shared.kms.reason import Cause
from shared.net.egress import EgressError, Proxy, ResolvedAddress, connect, request_tunnel, resolve

_CAUSES: Final = {"dns": Cause.DNS, "tcp": Cause.CONNECT, "tls": Cause.TLS}
"""Of a phase that fails. Up to its answer, every phase by a proxy concerns the proxy itself."""


class _PhaseError(Exception):
    """A phase failed; the text is its sentence."""


async def measure_connectivity(
    address: Address,
    *,
    create_trust_context: Callable[[], ssl.SSLContext] | None,
    timeout: float,
    alpn: str | None = None,
    proxy: Proxy | None = None,
) -> tuple[ConnectivityPhase, ...]:
    """Connects once and measures each phase, within `timeout` seconds in all. Raises only CancelledError.

    `create_trust_context` is called in a thread, because it may read files; without it there is no TLS. The service has
    to agree to the protocol `alpn` in TLS, such as `h2`.
    """
    phases: list[ConnectivityPhase] = []
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout

    @asynccontextmanager
    async def phase(name: str) -> AsyncIterator[None]:
        begin = loop.time()
        failure = None
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            failure = f"{name} to {address} did not end within the {timeout:g} s for all phases"
        except EgressError as error:
            failure = error.strerror
        except _PhaseError as error:
            failure = str(error)
        cause = (_CAUSES[name] if proxy is None or name == "tls" else Cause.PROXY) if failure else Cause.NONE
        phases.append(ConnectivityPhase(name, loop.time() - begin, failure, cause))
        if failure:
            raise _PhaseError(failure)

    with ExitStack() as sockets:
        try:
            async with phase("dns"):
                addresses = await _resolve(proxy.address if proxy else address)
            async with phase("tcp"):
                connection = sockets.enter_context(await _connect(addresses, proxy))
            if proxy:
                async with phase("proxy"):
                    await request_tunnel(connection, proxy, address)
            if create_trust_context:
                async with phase("tls"):
                    await _start_tls(connection, address, create_trust_context, alpn)
        except _PhaseError:
            pass  # its phase says it
    return tuple(phases)


async def _resolve(to: Address) -> list[ResolvedAddress]:
    try:
        return await resolve(*to)
    except (OSError, UnicodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "no host can have such a name"
        raise _PhaseError(f"the name {to.host} cannot be resolved: {cause}") from None


async def _connect(addresses: list[ResolvedAddress], proxy: Proxy | None) -> socket.socket:
    try:
        return await connect(addresses)
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        first = Address(*addresses[0][1][:2])
        others = f" and {len(addresses) - 1} more" if addresses[1:] else ""
        target = f" to {proxy}" if proxy else ""
        raise _PhaseError(f"no connection{target}: {cause} ({first}{others})") from None


async def _start_tls(
    connection: socket.socket, to: Address, create_trust_context: Callable[[], ssl.SSLContext], alpn: str | None
) -> None:
    try:
        context = await asyncio.to_thread(create_trust_context)
        if alpn:
            context.set_alpn_protocols([alpn])
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, ssl=context, sock=connection, server_hostname=to.host
        )
    except ssl.SSLCertVerificationError as error:
        raise _PhaseError(f"the certificate of {to} is not trusted: {error.verify_message}") from None
    except OSError as error:
        raise _PhaseError(f"no TLS with {to}: {error.strerror or error or type(error).__name__}") from None
    agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol()
    transport.abort()
    if alpn and agreed != alpn:
        raise _PhaseError(f"{to} speaks TLS, but not the protocol {alpn}, which this KMS needs")
