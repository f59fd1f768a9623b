"""A real sshd of its own on loopback: host key, user key and everything else in a folder of the test."""

import asyncio
import getpass
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ops.demo.processes import pick_free_ports
from tests import processes

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_CONFIGURATION = """ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""


@asynccontextmanager
async def sshd(folder: Path) -> AsyncIterator[list[str]]:
    """While the body runs, what it is given leads to this machine: a remote command is to follow it."""
    assert SSHD
    for name in ("host_key", "user_key"):
        await _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (port,) = pick_free_ports(1)
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "sshd_config").write_text(_CONFIGURATION.format(port=port, folder=folder))
    if os.geteuid() == 0:  # Debian's unit makes it; without it root's sshd ends
        await asyncio.to_thread(Path("/run/sshd").mkdir, mode=0o755, exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        server = await asyncio.create_subprocess_exec(
            SSHD, "-D", "-e", "-f", str(folder / "sshd_config"), stderr=log, stdout=log
        )
        try:
            await _listening(port, folder / "sshd.log")
            options = [f"UserKnownHostsFile={folder}/known_hosts", "StrictHostKeyChecking=yes", "BatchMode=yes"]
            yield [
                "ssh", "-F", "none", "-i", str(folder / "user_key"), "-p", str(port),
                *(part for option in options for part in ("-o", option)), f"{getpass.getuser()}@127.0.0.1",
            ]  # fmt: skip
        finally:
            await processes.stop(server)


async def _run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    await processes.finish(process)
    assert process.returncode == 0


async def _listening(port: int, log: Path) -> None:
    for _ in range(500):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return
    raise AssertionError(await asyncio.to_thread(log.read_text))
