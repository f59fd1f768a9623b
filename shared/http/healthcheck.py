"""Checks whether a server answers: an address comes in, the error goes out. For containers, which have no curl.

`--healthcheck` checks the server of a configuration. `python -m shared.http.healthcheck HOST:PORT` checks a server
without one, such as the emulator.
"""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

import click

from shared.config import yaml_file
from shared.config.errors import ConfigurationError
from shared.config.server_settings import ServerSettings
from shared.config.settings import Address, get_env_prefix, parse_address
from shared.http.web_config import TlsSettings, read_web_config

PATH = "/-/healthy"
TIMEOUT_SECONDS = 3.0


def check_configured_server(model: type[ServerSettings], config: Path | None, web_config: Path | None) -> str | None:
    """Return why the server of this configuration is not healthy, in a sentence, or None.

    Only `listen` is read: a file with a new error, which a reload would refuse, does not concern the running server.
    """
    try:
        tls = read_web_config(web_config).tls_server_config if web_config else None
        return check_server(_read_listen_address(model, config), tls)
    except ConfigurationError as error:
        return "; ".join(error.lines)
    except ValueError as error:
        return f"{config or 'environment'}: listen: {error}"


def check_server(address: Address, tls: TlsSettings | None = None) -> str | None:
    """Return why the server is not healthy, in a sentence, or None.

    Args:
        address: of the server.
        tls: its TLS settings, if any. If it requires a client certificate, which the check does not have, the start of
            the handshake is the answer.
    """
    closed = tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert"
    connection = _create_connection(address, tls)
    try:
        connection.connect()
        if closed:
            return None
        connection.request("GET", PATH)
        status = connection.getresponse().status
    except (ssl.SSLEOFError, ConnectionResetError) as error:
        # TLS 1.2 wants the certificate within the handshake, and asyncio hangs up there.
        return None if closed else f"{address} hung up: {error.strerror}"
    except ssl.SSLError as error:
        return f"{address} speaks no TLS: {error.reason}"
    except (OSError, HTTPException) as error:
        cause = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", None)
        return (
            f"{address} does not answer: {cause or type(error).__name__}; is the server running, and listening there?"
        )
    finally:
        connection.close()
    return None if status == 200 else f"{address} answered {PATH} with {status}"


def _read_listen_address(model: type[ServerSettings], config: Path | None) -> Address:
    environment = {name.upper(): value for name, value in os.environ.items()}
    listen = environment.get(f"{get_env_prefix(model)}LISTEN") or (yaml_file.read_yaml(config) if config else {}).get(
        "listen"
    )
    default: Address = model.model_fields["listen"].default
    return parse_address(listen) if listen else default


def _create_connection(address: Address, tls: TlsSettings | None) -> HTTPConnection:
    if tls is None:
        return HTTPConnection(*address, timeout=TIMEOUT_SECONDS)
    # The peer is this machine, by an address and no name of the certificate, and no secret is sent.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HTTPSConnection(*address, timeout=TIMEOUT_SECONDS, context=context)


def exit_with_result(error: str | None) -> None:
    """Print the result and exit: 0 if healthy, else 1."""
    click.echo(error or "healthy", err=bool(error))
    sys.exit(1 if error else 0)


if __name__ == "__main__":
    exit_with_result(check_server(parse_address(sys.argv[1])))
