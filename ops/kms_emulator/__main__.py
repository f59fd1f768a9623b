"""`keypulse-emulator`: runs the emulator until SIGTERM or SIGINT."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

from pathlib import Path
from typing import Any

import click

from shared import VERSION
from shared.kms.gcp.profile import check_key_name
from shared.process import logs
from shared.process.command_line import ParsedOption, parse_listen_option_or_exit, run_until_done_or_exit
from shared.process.server import run_until_stop_signal, wait_until_stopped

gc.freeze()
gc.enable()

_EPILOG = """\b
Examples:
  keypulse-emulator --key projects/demo/locations/global/keyRings/app/cryptoKeys/ledger
  keypulse-emulator --data /var/lib/keypulse/kms --key projects/demo/locations/global/keyRings/app/cryptoKeys/ledger
  curl -H 'Content-Type: application/json' -d '{"kind": "status", "status": "UNAVAILABLE"}' http://127.0.0.1:9011/faults
  keypulse-emulator --quota read 600 --quota hsm 3000
  curl -X DELETE http://127.0.0.1:9011/faults
  keypulse-emulator versions create
"""


class _Commands(click.Group):
    """Imports the module of a command when it runs: the client that it takes is slow to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's own
        return ["versions"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name != "versions":
            return None
        from ops.kms_emulator.key_versions import command  # noqa: PLC0415  # see above

        return command


@click.group(cls=_Commands, invoke_without_command=True, epilog=_EPILOG)
@click.option("--listen", default="127.0.0.1:9010", show_default=True, metavar="HOST:PORT", help="gRPC, plaintext.")
@click.option("--faults", default="127.0.0.1:9011", show_default=True, metavar="HOST:PORT", help="Faults over HTTP.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=ParsedOption(check_key_name, "name"),
    help="A key to create where it is missing; repeatable.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the state in this folder; without it, in memory.",
)
@click.option(
    "--quota",
    "quotas",
    type=(click.Choice(["read", "write", "software", "hsm", "external"]), click.IntRange(min=0)),
    multiple=True,
    metavar="KIND TOKENS",
    help="Tokens a minute, region and project: of read, write, software, hsm or external; repeatable. Else no limit.",
)
@click.option(
    "--allow-remote-insecure", is_flag=True, help="Allow addresses other than loopback: between containers, for tests."
)
@click.version_option(VERSION, prog_name="keypulse")
@click.pass_context
def main(
    context: click.Context,
    listen: str,
    faults: str,
    keys: tuple[str, ...],
    data: Path | None,
    quotas: tuple[tuple[str, int], ...],
    allow_remote_insecure: bool,
) -> None:
    """Emulate Cloud KMS on this machine, with faults on demand.

    The official client connects over plaintext gRPC. The emulator asks nobody for credentials, so it listens on
    loopback only, unless --allow-remote-insecure is given. Serves when no command is given.
    """
    if context.invoked_subcommand is not None:
        return
    listen_address = parse_listen_option_or_exit("--listen", listen, allow_remote_insecure=allow_remote_insecure)
    faults_address = parse_listen_option_or_exit("--faults", faults, allow_remote_insecure=allow_remote_insecure)
    logs.configure("emulator")
    options = {"listen": listen_address, "faults": faults_address, "keys": keys, "data": data, "quotas": dict(quotas)}
    run_until_done_or_exit(run_until_stop_signal(_serve_until_stopped(options)))


async def _serve_until_stopped(options: dict[str, Any]) -> None:
    from ops.kms_emulator.emulator import run_emulator  # noqa: PLC0415  # 0.4 s that --help does not need

    async with run_emulator(**options) as emulator:
        await wait_until_stopped(address=str(emulator.address), faults=str(emulator.faults_address))


if __name__ == "__main__":
    main()
