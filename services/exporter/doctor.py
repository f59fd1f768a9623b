"""The checks of the exporter's configuration, for the command `doctor`."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from services.exporter.backend_reads import ReadBackend, build_read, open_backend_reader
from services.exporter.backends.health_documents import UnreadableError
from services.exporter.backends.health_proposal import propose_health
from services.exporter.backends.reader import BackendReader
from services.exporter.config import ExporterSettings, is_folder_usable
from services.exporter.model import BackendState
from shared.check import Check, CheckError
from shared.credentials import ReadValidity
from shared.kms.diagnosis import list_key_checks
from shared.kms.registry import connect_key
from shared.net.page import check_page


@asynccontextmanager
async def open_checks(settings: ExporterSettings) -> AsyncIterator[Sequence[Check]]:
    """Each key, each backend's documents, and the runbook."""
    async with AsyncExitStack() as stack:
        checks: list[Check] = []
        round_trips: list[str] = []
        for n, target in enumerate(settings.targets):
            key = f"targets.{n} ({target.name})"
            if target.canary_dir:
                checks.append(Check(f"targets.{n}.canary_dir", partial(_check_folder, target.canary_dir)))
            kms = connect_key(target.kms)
            stack.push_async_callback(kms.close)
            round_trips.append(f"{key} round trip")
            checks += list_key_checks(
                key,
                kms,
                kms.profile.probe_permissions,
                timeout=settings.probe.timeout,
                address=target.kms.address_setting,
            )
        for n, backend in enumerate(settings.backends):
            reader = await open_backend_reader(backend, settings.probe.timeout, stack)
            documents = partial(check_documents, reader, build_read(reader))
            checks.append(Check(f"backends.{n} ({backend.service}) documents", documents))
        for credential, read in settings.list_credentials().items():
            # A token's end is known once a key has used it.
            checks.append(Check(credential, partial(_check_credential, read), after=tuple(round_trips)))
        if settings.runbook_url:
            checks.append(Check("runbook_url", partial(check_page, settings.runbook_url)))
        yield checks


async def _check_credential(read: ReadValidity) -> str:
    validity = await asyncio.to_thread(read)
    if validity and validity.ends_at <= time.time():
        raise CheckError(f"it {validity}", "renew it, and replace its file")
    return str(validity or "there is none, or its end is not known")


async def _check_folder(folder: Path) -> str:
    if not await asyncio.to_thread(is_folder_usable, folder):
        raise CheckError(f"{folder} is no folder that this user may read and write", f"run: mkdir -p {folder}")
    return str(folder)


async def check_documents(reader: BackendReader, read: ReadBackend) -> str:
    """Read a backend, and return what stands in its documents. Raises CheckError with one hint for each cause."""
    states = await read()
    problems = [problem for state in states for problem in state.problems]
    hints = [hint for state in states for hint in state.hints]
    found = [state.health.found for state in states if state.health and state.health.mode_problem]
    if any(not hint for hint in hints):
        proposed, hint = await _propose_health(reader)
        found, hints = [*found, proposed], [hint, *filter(None, hints)]
    if problems:
        there = f"; it has {', '.join(filter(None, found))}" if any(found) else ""
        raise CheckError("; ".join(problems) + there, "; ".join(dict.fromkeys(hints)))
    return ", ".join(_describe_state(state) for state in states)


async def _propose_health(reader: BackendReader) -> tuple[str, str]:
    """What stands in a health document that is not the one that is expected, and how to read it."""
    try:
        proposal = propose_health((await reader.fetch_health()).body)
    except UnreadableError as error:
        return "", error.hint
    return proposal.found, f"set `health: {proposal.setting}`"


def _describe_state(state: BackendState) -> str:
    assert state.health  # noqa: S101  # without it there is a problem
    counted = "with" if state.decryption_errors is not None else "without"
    mode = f"mode {state.health.mode}" if state.health.mode else "mode unknown"
    end = f"; its certificate {state.certificate}" if state.certificate else ""
    return f"{state.health.found}: {mode}, {'' if state.health.ready else 'not '}ready, {counted} metrics{end}"
