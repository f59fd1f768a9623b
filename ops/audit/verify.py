"""Whether what happens in KMS is logged: an operation that carries a mark, looked for in the log and in each sink."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from ops.audit.cloud import Caller, read
from ops.audit.model import Wish
from ops.audit.permissions import READ_LOGS, advice
from ops.audit.places import in_bigquery, in_bucket, in_log
from ops.audit.plan import ImpossibleError, changes
from ops.audit.refusal import GoogleError
from shared.smoke.check import Outcome, Result

_PAUSE: Final = 10.0
"""Seconds between two looks; the quota of reading the log is 60 a minute for each project."""
_STAMP: Final = "%Y%m%dT%H%M%SZ"

Look = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe: when it was sent, and what tells it from all others."""

    at: datetime
    mark: str
    """In its User-Agent, which the log keeps; the time is part of it."""

    @staticmethod
    def new(at: datetime, token: str) -> "Probe":
        """The probe of a time, with a few random characters."""
        return Probe(at, f"keypulse-{at.strftime(_STAMP)}-{token}")

    @staticmethod
    def parse(mark: str) -> "Probe":
        """The probe that an earlier run has sent; ValueError where its name is none."""
        found = re.fullmatch(r"keypulse-(\d{8}T\d{6}Z)-[0-9a-f]{1,32}", mark)
        try:
            at = datetime.strptime(found[1] if found else "", _STAMP).replace(tzinfo=UTC)
        except ValueError:
            example = "keypulse-20260101T000000Z-1a2b3c4d"
            raise ValueError(f"expected the name that an earlier run printed, such as {example}") from None
        return Probe(at, mark)


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, as it is handed in."""

    seconds: Callable[[], float]
    """Monotonic."""
    sleep: Callable[[float], None]


def looked_at(
    google: Caller, wishes: list[Wish], probe: Probe, clock: Clock, *, send: bool, patience: float
) -> Iterator[Result]:
    """Every project's settings, then the probe in all of them, and where it has arrived.

    Args:
        google: is asked.
        wishes: one for each project.
        probe: to look for.
        clock: the time.
        send: whether it has yet to be sent; else an earlier run has.
        patience: seconds, from the probe to the last place.
    """
    waiting: dict[str, tuple[Look, str]] = {}
    for wish in wishes:
        before = list(_before(google, wish, probe if send else None, clock))
        yield from before
        places = dict(_places(google, wish, probe))
        if all(result.ok for result in before):
            waiting |= places
        else:
            why = "not looked at: first comes what failed above"
            yield from (Result(name, Outcome.SKIPPED, why) for name in places)
    began = clock.seconds()
    while waiting:
        for name, (look, late) in list(waiting.items()):
            result = _seen(name, look, clock.seconds, began)
            if result is None and clock.seconds() - began >= patience:
                result = Result(name, Outcome.FAILED, f"{probe.mark} has not arrived", late, clock.seconds() - began)
            if result:
                del waiting[name]
                yield result
        if waiting:
            clock.sleep(min(_PAUSE, max(0.0, patience - (clock.seconds() - began))))


def _before(google: Caller, wish: Wish, probe: Probe | None, clock: Clock) -> Iterator[Result]:
    yield _tried(f"{wish.project}: settings", lambda: _settings(google, wish), clock.seconds)
    yield _tried(f"{wish.project}: access to the log", lambda: _may_read(google, wish), clock.seconds)
    if probe:
        yield _tried(f"{wish.project}: probe", lambda: _send(google, wish, probe), clock.seconds)


def _tried(name: str, act: Callable[[], tuple[str, str]], seconds: Callable[[], float]) -> Result:
    """What `act` has found: what was seen, and what to do, which is empty where all is well."""
    began = seconds()
    try:
        seen, todo = act()
    except (GoogleError, ImpossibleError) as error:
        seen, _, todo = str(error).partition("; ")
    return Result(name, Outcome.FAILED if todo else Outcome.PASSED, seen, todo, seconds() - began)


def _settings(google: Caller, wish: Wish) -> tuple[str, str]:
    due = changes({part: read(google, part, wish) for part in wish.parts}, wish)
    if due:
        return f"not as wished: {', '.join(change.part for change in due)}", "look with plan, and use apply"
    return "as wished", ""


def _may_read(google: Caller, wish: Wish) -> tuple[str, str]:
    answer = google.call(
        "cloudresourcemanager.projects.testIamPermissions",
        resource=f"projects/{wish.project}",
        body={"permissions": [READ_LOGS]},
    )
    granted = READ_LOGS in answer.get("permissions", [])
    return ("granted", "") if granted else ("not granted", advice("logging.entries.list"))


def _send(google: Caller, wish: Wish, probe: Probe) -> tuple[str, str]:
    """Lists key rings: it changes nothing, needs no key, and is logged as ADMIN_READ."""
    google.call(
        "cloudkms.projects.locations.keyRings.list",
        headers={"user-agent": probe.mark},
        parent=f"projects/{wish.project}/locations/global",
        pageSize=1,
    )
    return f"{probe.mark} was sent", ""


def _places(google: Caller, wish: Wish, probe: Probe) -> Iterator[tuple[str, tuple[Look, str]]]:
    """Where it has to arrive, with what to do where it is late."""
    since = probe.at - timedelta(hours=1)  # this machine's clock may be wrong
    again = f"look again later with --probe {probe.mark}"
    exempted = "look whether your own account is exempted"
    log = partial(in_log, google, wish.project, probe.mark, since)
    yield f"{wish.project}: log", (log, f"it takes a minute; {exempted}, or {again}")
    if wish.bigquery:
        rows = partial(in_bigquery, google, wish.project, probe.mark, since, wish.location)
        yield f"{wish.project}: BigQuery", (rows, f"the first rows take minutes; {again}")
    if wish.bucket:
        files = partial(in_bucket, google, wish.bucket, probe.mark, since)
        yield f"{wish.project}: bucket", (files, f"files come once an hour, the first after 2 to 3 hours; {again}")


def _seen(name: str, look: Look, seconds: Callable[[], float], began: float) -> Result | None:
    """None where it has not arrived."""
    try:
        arrived = look()
    except GoogleError as error:
        seen, _, todo = str(error).partition("; ")
        return Result(name, Outcome.FAILED, seen, todo, seconds() - began)
    return Result(name, Outcome.PASSED, "it has arrived", seconds=seconds() - began) if arrived else None
