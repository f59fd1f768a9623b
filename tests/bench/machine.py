"""What the numbers were measured on: the machine and its programs, what else runs there, a process's peak memory."""

import os
import platform
import re
import resource
import sqlite3
import subprocess
import time
from pathlib import Path

from ops.demo.stack import find_program
from shared.http.server import StartError
from tests.postgres import read_version

IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def describe_machine(disk: Path) -> dict[str, str]:
    """What a reader needs to know, by its name. Raises StartError where a needed program is missing."""
    return {
        "machine": f"{_cores()} cores of {_processor()}, {_memory_gb():.0f} GB",
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        "disk": file_system(disk),
        "Python": f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "PostgreSQL": f"PostgreSQL {read_version()}",
        "Prometheus": f"Prometheus {_version(find_program('prometheus'))}",
        "Alertmanager": f"Alertmanager {_version(find_program('alertmanager', 'prometheus-alertmanager'))}",
    }


class OtherWork:
    """How much of the machine other programs use from now on."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        """Of the minute before."""
        self._started, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def format(self) -> str:
        """Until now; our own processes count once they have ended."""
        seconds = time.monotonic() - self._started
        others = (_busy_seconds() - self._busy - (_own_seconds() - self._own)) / seconds
        return f"load {self.load:.1f} before; other programs used {max(0.0, others):.1f} of {_cores()} cores meanwhile"


def _busy_seconds() -> float:
    """Of all cores since the machine started, with what its host gave to others: the first line of proc_stat(5)."""
    line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    user, nice, system, _idle, _waits, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process and its children that have ended, and theirs."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`. Raises StartError where it keeps its files in memory."""
    found = subprocess.run(["df", "--output=fstype", folder], capture_output=True, text=True, check=True)
    kind = found.stdout.split()[-1]
    if kind in IN_MEMORY:
        raise StartError(f"{folder} is kept in memory ({kind}), where a commit costs nothing; name a disk with --disk")
    return kind


def peak_mb(pid: int) -> float:
    """The most memory that a living process has had, in MB: VmHWM of proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise StartError(f"the process {pid} has ended")
    return int(found[1]) / 1024


def resident_mb(pid: int) -> float:
    """The memory that a living process and its children hold now, in MB; of what several share, each has its part.

    It is Pss of proc_pid_smaps(5): added up, what the machine would have without them.
    """
    rollups = (Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii") for each in _with_children(pid))
    return sum(int(kb) for text in rollups for kb in re.findall(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)) / 1024


def cpu_seconds(pid: int) -> float:
    """What a living process and its children have used of all cores: utime and stime of proc(5)."""
    return sum(map(_cpu_seconds, _with_children(pid)))


def _cpu_seconds(pid: int) -> float:
    after_the_name = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_the_name[11]) + int(after_the_name[12])) / os.sysconf("SC_CLK_TCK")


def _with_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [pid, *map(int, children.split())]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3


def _version(path: str) -> str:
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\S+)", answer.stdout + answer.stderr)
    return found[1] if found else "of an unknown version"
