"""What the numbers were measured on: the machine and its programs, a folder's file system, a process's peak memory."""

import os
import platform
import re
import sqlite3
import subprocess
from pathlib import Path

from ops.demo.stack import find_program
from shared.http.server import StartError

IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def described(disk: Path) -> list[str]:
    """One line for each thing that a reader needs to know. Raises StartError where a needed program is missing."""
    return [
        f"machine       {_cores()} cores of {_processor()}, {_memory_gb():.0f} GB of memory",
        f"load          {os.getloadavg()[0]:.1f} in the minute before; at more than 0.5, others are at work as well",
        f"system        {platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        f"disk          {disk} ({file_system(disk)})",
        f"Python        {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        f"Prometheus    {_version(find_program('prometheus'))}",
        f"Alertmanager  {_version(find_program('alertmanager', 'prometheus-alertmanager'))}",
    ]


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
