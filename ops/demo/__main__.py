"""`keypulse-demo`: the whole product on this machine, with no account anywhere."""

import asyncio
import signal
import sys
from pathlib import Path

import click
from rich.console import Console

from ops.demo import scenario, stack, timeline
from ops.demo.ports import Ports
from shared import VERSION
from shared.cli import run_or_exit
from shared.server import StartError
from shared.stop import stop_signal

console = Console(highlight=False)


@click.command(
    epilog="""\b
Examples:
  keypulse-demo           runs until Ctrl-C; break and heal KMS at http://127.0.0.1:9913/
  keypulse-demo --once    breaks KMS, waits for the page and the all-clear, writes demo.json
"""
)
@click.option("--once", is_flag=True, help="One incident from end to end, then exit: 0 only if everything arrived.")
@click.version_option(VERSION, prog_name="keypulse-demo")
def main(once: bool) -> None:
    """Starts the emulator, backend, exporter, Prometheus, Alertmanager, relay and stand-in providers on loopback.

    They run the product's own rules and routing, with a minute shortened to a second.
    """
    # A terminal that is closed sends SIGHUP; what was started must be stopped then, too.
    signal.signal(signal.SIGHUP, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    run_or_exit(_once(Path("demo.json")) if once else _until_stopped())


async def _once(result: Path) -> None:
    result.unlink(missing_ok=True)  # an older one would speak for a run that failed  # noqa: ASYNC240 - nothing runs yet
    console.print("starting everything …")
    stopping = asyncio.create_task(stop_signal())
    work = asyncio.create_task(_incident(result))
    try:
        await asyncio.wait({stopping, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise StartError("stopped before the incident was over")
        if not work.result():
            sys.exit(1)
    finally:
        for task in (stopping, work):
            task.cancel()
        await asyncio.gather(stopping, work, return_exceptions=True)


async def _incident(result: Path) -> bool:
    async with stack.running(Ports()) as running:
        console.print("all healthy; breaking KMS (IAM permission revoked), then healing it\n")
        hops, missing = await scenario.incident(running, _say)
        timeline.write_json(hops, ok=not missing, file=result)
        console.print()
        timeline.print_table(hops, console)
        for sentence in missing:
            console.print(f"[red]{sentence}[/]")
        if not missing:
            console.print(f"all six messages arrived with their links; timeline in {result}")
    return not missing


def _say(hop: timeline.Hop) -> None:
    where = f" on {hop.channel}" if hop.channel else ""
    console.print(f"  {hop.seconds:6.2f} s  {timeline.WORDS[hop.name]}{where}")


async def _until_stopped() -> None:
    console.print("starting everything …")
    ports = Ports()
    stopping = asyncio.create_task(stop_signal())
    try:
        async with stack.running(ports) as running:
            _print_addresses(ports, running.folder)
            while not stopping.done():
                running.children.check()
                await asyncio.wait({stopping}, timeout=1)
            console.print("stopping …")
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)


def _print_addresses(ports: Ports, folder: Path) -> None:
    rows = (
        ("on call: break and heal KMS", ports.url("stand_ins") + "/"),
        ("runbooks", ports.url("stand_ins") + "/docs/KMS_OPERATIONS.md"),
        ("Prometheus", ports.url("prometheus") + "/alerts"),
        ("Alertmanager", ports.url("alertmanager") + "/"),
        ("exporter: the board", ports.url("exporter") + "/"),
        ("relay", ports.url("relay") + "/api/deliveries"),
        ("backend", ports.url("backend") + "/healthz"),
        ("emulator (gRPC)", f"127.0.0.1:{ports.emulator}"),
        ("emulator's faults", ports.url("faults") + "/faults"),
        ("stand-in mail server", f"127.0.0.1:{ports.smtp}"),
    )
    console.print("everything is up, and healthy; a minute of the rules is a second here\n")
    for what, address in rows:
        console.print(f"  {address:<46}{what}")
    rotate = f"keypulse-rotator run --type new-dek --config {folder / 'rotator.yml'}"
    console.print(f"\n  {rotate}\n  rotates the backend's data key; --help names the other commands", soft_wrap=True)
    console.print("\nCtrl-C stops all of it")


if __name__ == "__main__":
    main()
