"""`keypulse-backend admin`: the remote end of the rotator's driver `command`, and `admin abandon`.

A line of JSON on standard input is a request of the admin API, and a line on standard output its answer:

    {"method": "POST", "path": "rotate", "caller": "…", "body": {…}}
    {"status": 200, "body": {…}}

Each is sent to the backend that runs on this machine, with the address and the token file of its configuration. So
who may run a command beside the backend needs neither, and no value is on a command line.

`admin abandon` lists the data keys that only a lost local key unwraps, each with its number of records, and changes
nothing. With names and the number of their records it abandons these: nobody abandons more than they know of.
"""

import json
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import click
from pydantic import BaseModel, Field, JsonValue, ValidationError

from services.backend.config import BackendSettings
from shared.check import join_hint
from shared.config.errors import ConfigurationError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.config.settings import Address
from shared.http.web_config import read_web_config
from shared.keyring.administration import MAX_RESPONSE_BYTES
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit

_MAX_LINE_BYTES: Final = 4 * 1024 * 1024 + 65536
"""Of a request; its body may have as much as the admin API takes."""
_RESPONSE_TIMEOUT: Final = 3600.0
"""Seconds without a byte from the backend; the caller has a timeout of its own."""

_EXAMPLES: Final = """\b
Examples:
  echo '{"method": "GET", "path": "census"}' | keypulse-backend admin --config backend.yml
  ssh backend.example.org keypulse-backend admin --config /etc/keypulse/backend.yml
  keypulse-backend admin abandon --config backend.yml"""


class _RequestLine(BaseModel):
    method: Literal["GET", "POST"]
    path: str = Field(pattern=r"^[A-Za-z0-9._~%/?=&+-]{1,1000}$")
    caller: str = Field("", pattern=r"^[ -~]{0,200}$")
    body: JsonValue = None


@dataclass(frozen=True, slots=True)
class BackendClient:
    """How the running backend is reached."""

    address: Address
    token: SecretFile
    tls: ssl.SSLContext | None = None

    def send(self, line: bytes) -> Mapping[str, object]:
        """The answer to a line. A failure is an answer, too."""
        try:
            request = _RequestLine.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return _build_refusal(400, ": ".join(["a line", *map(str, first["loc"]), first["msg"]]))
        try:
            token = self.token.read_value()
            if not (token.isascii() and token.isprintable()):
                return _build_refusal(
                    502, f"admin.token_file {self.token.path}: its first line fits into no HTTP header"
                )
            return self._send_request(request, token)
        except SecretUnreadableError as error:
            return _build_refusal(502, f"admin.token_file {error}")
        except (OSError, HTTPException) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            return _build_refusal(502, f"the backend at {self.address} does not answer: {cause}; is it running?")

    def _send_request(self, request: _RequestLine, token: str) -> Mapping[str, object]:
        host, port = self.address  # 0.0.0.0 and ::, for all interfaces, also reach this machine
        connection = (
            HTTPSConnection(host, port, timeout=_RESPONSE_TIMEOUT, context=self.tls)
            if self.tls
            else HTTPConnection(host, port, timeout=_RESPONSE_TIMEOUT)
        )
        headers = {"Authorization": f"Bearer {token}", "X-Keypulse-Caller": request.caller or "keypulse-backend admin"}
        try:
            body = None if request.body is None else json.dumps(request.body).encode()
            connection.request(request.method, f"/admin/crypto/{request.path}", body, headers)
            response = connection.getresponse()
            answer = response.read(MAX_RESPONSE_BYTES + 1)
        finally:
            connection.close()
        if len(answer) > MAX_RESPONSE_BYTES:
            return _build_refusal(502, f"the backend's answer is over {MAX_RESPONSE_BYTES // 1024**2} MiB")
        return {"status": response.status, "body": _parse_json(answer)}


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _build_refusal(status: int, message: str) -> Mapping[str, object]:
    return {"status": status, "body": {"error": message}}


def relay_lines(requests: BinaryIO, responses: BinaryIO, backend: BackendClient) -> None:
    """Answers each line of `requests` with one of `responses`, until they end."""
    while line := requests.readline(_MAX_LINE_BYTES):
        responses.write(json.dumps(backend.send(line)).encode() + b"\n")
        responses.flush()
        if not line.endswith(b"\n"):  # too long, or cut off: the rest is no request
            return


def load_own_certificate(web_config: Path) -> ssl.SSLContext | None:
    """Trusts the certificate of the backend's own web.yml, whatever name it is for. Raises ConfigurationError."""
    tls = read_web_config(web_config).tls_server_config
    if tls is None:
        return None
    context = ssl.create_default_context(cafile=str(tls.cert_file))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def add_options(command: Callable[..., Any]) -> Callable[..., Any]:
    web = click.Path(path_type=Path)
    command = click.option("--web.config.file", "web_config", type=web, help="Its web.yml, where it has one.")(command)
    return click.option("--config", type=click.Path(path_type=Path), help="The running backend's configuration.")(
        command
    )


@click.group(
    "admin",
    invoke_without_command=True,
    short_help="Forward lines of JSON to the running backend's admin API.",
    epilog=_EXAMPLES,
)
@add_options
@click.pass_context
def admin(context: click.Context, config: Path | None, web_config: Path | None) -> None:
    """Answer each line of JSON on standard input with one on standard output, through the running backend."""
    if context.invoked_subcommand is None:
        relay_lines(sys.stdin.buffer, sys.stdout.buffer, connect_to_backend(config, web_config))


def connect_to_backend(config: Path | None, web_config: Path | None) -> BackendClient:
    """The backend that runs on this machine by that configuration; exits where it has no admin API."""
    settings = load_settings_or_exit(BackendSettings, config)
    if settings.admin.token_file is None:
        click.echo(f"{config}: admin.token_file: expected a file that holds a token; the admin API is off", err=True)
        sys.exit(2)
    tls = parse_option_or_exit("--web.config.file", _load_tls, web_config) if web_config else None
    return BackendClient(settings.listen, SecretFile(settings.admin.token_file), tls)


def _load_tls(web_config: Path) -> ssl.SSLContext | None:
    try:
        return load_own_certificate(web_config)
    except (ConfigurationError, OSError) as error:  # ssl's errors are OSErrors
        raise ValueError(str(error)) from None


@click.command("abandon", short_help="Abandon data keys whose local key is lost.")
@click.argument("data_keys", metavar="[DATA_KEY]...", nargs=-1)
@click.option("--records", type=click.IntRange(min=0), metavar="N", help="How many records are lost with them.")
@add_options
def abandon(data_keys: tuple[str, ...], records: int | None, config: Path | None, web_config: Path | None) -> None:
    """List the data keys that only a lost local key unwraps; abandon those that are named, with their records."""
    if data_keys and records is None:
        click.echo(
            "--records: expected how many records are lost with them; without names this command lists it", err=True
        )
        sys.exit(2)
    backend = connect_to_backend(config, web_config)
    if not data_keys:
        _print_lost_keys(_call_backend(backend, "GET", "lost"))
        return
    done = _call_backend(backend, "POST", "abandon", {"data_keys": data_keys, "records": records})
    click.echo(f"{done['abandoned']} data keys were abandoned, and {records} records with them")


def _print_lost_keys(lost_keys: list[dict[str, Any]]) -> None:
    if not lost_keys:
        click.echo("no data key is lost: there is nothing to abandon")
        return
    for key in lost_keys:
        click.echo(f"{key['id']}  made {key['created_at']}  {key['record_count']} records  {key['error']}")
    names, records = " ".join(key["id"] for key in lost_keys), sum(key["record_count"] for key in lost_keys)
    click.echo(
        "Put the local key file back, from another instance or a backup, and all of them can be read again. Only where "
        f"it is lost for good, abandon them:\n  keypulse-backend admin abandon {names} --records {records}"
    )


def _call_backend(backend: BackendClient, method: str, path: str, body: object = None) -> Any:
    """What the backend answers; exits with its sentence where it refuses."""
    line = {"method": method, "path": path, "caller": "keypulse-backend admin abandon", "body": body}
    answer = backend.send(json.dumps(line).encode())
    content: Any = answer["body"]
    if answer["status"] != 200:
        refusal = content or {}
        error = refusal.get("error", f"the backend answers with {answer['status']}")
        click.echo(join_hint(error, refusal.get("hint", "")), err=True)
        sys.exit(1)
    return content
