"""A real proxy, tinyproxy, in a folder of the test: what was asked of it, and how it refuses."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ops.demo.processes import pick_free_ports
from shared.config.settings import Address
from tests import processes

NOT_LOOPBACK = "0.0.0.0"  # leads to this machine, too, and no rule about proxies makes an exception of it
USER, PASSWORD = "keypulse", "pr0xy-s3cret"
_CONFIGURATION = """Listen 127.0.0.1
Port {port}
Timeout 60
MaxClients 100
LogLevel Connect
{more}
"""


class TinyProxy:
    """The running proxy."""

    def __init__(self, address: Address, log: Path) -> None:
        self.address = address
        self._log = log

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def url_with_login(self) -> str:
        return f"http://{USER}:{PASSWORD}@{self.address}"

    @property
    def requests(self) -> list[str]:
        """What clients asked of it, such as `CONNECT HOST:PORT` and `GET http://HOST:PORT/`."""
        return re.findall(r"Request \(file descriptor \d+\): (.*) HTTP/1\.[01]", self._log.read_text())


@contextmanager
def tinyproxy(folder: Path, *, login: bool = False, ports: tuple[int, ...] = ()) -> Iterator[TinyProxy]:
    """Runs one while the body does.

    Args:
        folder: for its files.
        login: whether it demands USER and PASSWORD.
        ports: those that CONNECT may lead to; empty allows all.
    """
    address = Address("127.0.0.1", *pick_free_ports(1))
    more = [f"BasicAuth {USER} {PASSWORD}"] if login else []
    more += [f"ConnectPort {port}" for port in ports]
    configuration, log = folder / f"tinyproxy-{address.port}.conf", folder / f"tinyproxy-{address.port}.log"
    configuration.write_text(_CONFIGURATION.format(port=address.port, more="\n".join(more)))
    command = ["tinyproxy", "-d", "-c", str(configuration)]
    # It is killed at the end, since a SIGTERM that comes while it forks is lost.
    with log.open("wb") as output, processes.running(command, stdout=output, stderr=output):
        _wait_until_it_listens(address, log)
        yield TinyProxy(address, log)


def _wait_until_it_listens(address: Address, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(log.read_text())
