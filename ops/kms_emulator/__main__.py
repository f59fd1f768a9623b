"""`keypulse-emulator`: options in, a running emulator until SIGTERM or SIGINT."""

from pathlib import Path

import click
import structlog

from shared import VERSION
from shared.config.settings import Address, parse_address
from shared.kms.gcp.wire_format import check_key_name
from shared.process import logs
from shared.process.command_line import parse_option_or_exit, run_until_done_or_exit
from shared.process.shutdown import run_until_stop_signal, wait_for_stop_signal

log = structlog.get_logger(__name__)

_EPILOG = """\b
Examples:
  keypulse-emulator --key projects/demo/locations/global/keyRings/app/cryptoKeys/ledger
  keypulse-emulator --data /var/lib/keypulse/kms --key projects/demo/locations/global/keyRings/app/cryptoKeys/ledger
  curl -H 'Content-Type: application/json' -d '{"kind": "status", "status": "UNAVAILABLE"}' http://127.0.0.1:9011/faults
  curl -X DELETE http://127.0.0.1:9011/faults
"""


@click.command(epilog=_EPILOG)
@click.option("--listen", default="127.0.0.1:9010", show_default=True, metavar="HOST:PORT", help="gRPC, plaintext.")
@click.option("--faults", default="127.0.0.1:9011", show_default=True, metavar="HOST:PORT", help="Faults over HTTP.")
@click.option("--key", "keys", multiple=True, metavar="NAME", help="A key to create where it is missing; repeatable.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="Keeps the state; without it, memory does."
)
@click.option(
    "--allow-remote-insecure", is_flag=True, help="Lets it listen beyond loopback: between containers, for a test."
)
@click.version_option(VERSION, prog_name="keypulse")
def main(listen: str, faults: str, keys: tuple[str, ...], data: Path | None, allow_remote_insecure: bool) -> None:
    """Cloud KMS on this machine, with faults on demand.

    The official client reaches it through a plaintext gRPC channel. It asks nobody for credentials, so it only
    listens on loopback, unless it is allowed more.
    """
    parse = parse_address if allow_remote_insecure else _parse_loopback_address
    listen_address = parse_option_or_exit("--listen", parse, listen)
    faults_address = parse_option_or_exit("--faults", parse, faults)
    names = [parse_option_or_exit("--key", check_key_name, key) for key in keys]
    logs.configure("emulator")
    run_until_done_or_exit(run_until_stop_signal(_serve_until_stopped(listen_address, faults_address, names, data)))


async def _serve_until_stopped(listen: Address, faults: Address, keys: list[str], data: Path | None) -> None:
    from ops.kms_emulator.emulator import run_emulator  # noqa: PLC0415  # 0.4 s that --help does not need

    async with run_emulator(listen=listen, faults=faults, keys=keys, data=data) as emulator:
        log.info("listening", address=str(emulator.address), faults=str(emulator.faults_address))
        await wait_for_stop_signal()
        log.info("stopping")


def _parse_loopback_address(text: str) -> Address:
    address = parse_address(text)
    if not address.is_loopback:
        raise ValueError(
            "expected a loopback address such as 127.0.0.1:9010, because nobody is asked for credentials, or "
            "--allow-remote-insecure"
        )
    return address


if __name__ == "__main__":
    main()
