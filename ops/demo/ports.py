"""The ports of the demo."""

import random
from dataclasses import dataclass, fields
from typing import Final

from shared.config.settings import Address
from shared.http.server import StartError, bind_socket

_NOT_FOR_CONNECTIONS: Final = range(10_000, 32_768)
"""Below what Linux gives to connections by default (ip_local_port_range), so that none takes a port meanwhile."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The port of each part on 127.0.0.1. Prometheus and Alertmanager avoid their usual ports."""

    exporter: int = 9911
    relay: int = 9912
    backend: int = 8000
    emulator: int = 9010
    faults: int = 9011
    stand_ins: int = 9913
    prometheus: int = 9914
    alertmanager: int = 9915
    smtp: int = 1025
    sockets: int = 9916

    @classmethod
    def pick_free(cls) -> "Ports":
        """Return free ports, for a demo beside another."""
        return cls(*pick_free_ports(len(fields(cls))))

    def build_url(self, name: str) -> str:
        """`http://127.0.0.1:PORT` of one part."""
        return f"http://127.0.0.1:{getattr(self, name)}"

    def check_free(self) -> None:
        """Raises StartError if a port is in use, before anything is started."""
        for field in fields(self):
            port = getattr(self, field.name)
            try:
                bind_socket(Address("127.0.0.1", port)).close()
            except StartError:
                raise StartError(
                    f"port {port} (for {field.name}) is in use; stop what listens there "
                    f"(ss -ltnp 'sport = :{port}' names it) and run this again"
                ) from None


def pick_free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_NOT_FOR_CONNECTIONS, len(_NOT_FOR_CONNECTIONS)):
        if len(found) == count:
            return found
        try:
            bind_socket(Address("127.0.0.1", port)).close()
        except StartError:
            continue
        found.append(port)
    raise StartError("127.0.0.1 has no free port left; stop what listens there")
