"""The checks of the exporter's configuration, for the command `doctor`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from services.exporter.config import ExporterSettings, is_folder_usable
from services.exporter.jobs import ReadBackend, build_backend_reader
from services.exporter.model import BackendState
from shared.check import Check, CheckError
from shared.kms.diagnosis import list_key_checks
from shared.kms.registry import connect_key
from shared.net.page import check_page


@asynccontextmanager
async def open_checks(settings: ExporterSettings) -> AsyncIterator[Sequence[Check]]:
    """Each key, each backend's documents, and the runbook."""
    async with AsyncExitStack() as stack:
        checks: list[Check] = []
        for n, target in enumerate(settings.targets):
            key = f"targets.{n} ({target.name})"
            if target.canary_dir:
                checks.append(Check(f"targets.{n}.canary_dir", partial(_check_folder, target.canary_dir)))
            kms = connect_key(target.kms)
            stack.push_async_callback(kms.close)
            checks += list_key_checks(key, kms, kms.profile.probe_permissions, timeout=settings.probe.timeout)
        for n, backend in enumerate(settings.backends):
            read = await build_backend_reader(backend, settings.probe.timeout, stack)
            documents = partial(_check_documents, read, has_metrics=backend.metrics_url is not None)
            checks.append(Check(f"backends.{n} ({backend.service}) documents", documents))
        if settings.runbook_url:
            checks.append(Check("runbook_url", partial(check_page, settings.runbook_url)))
        yield checks


async def _check_folder(folder: Path) -> str:
    if not await asyncio.to_thread(is_folder_usable, folder):
        raise CheckError(f"{folder} is no folder that this user may read and write", f"run: mkdir -p {folder}")
    return str(folder)


async def _check_documents(read: ReadBackend, *, has_metrics: bool) -> str:
    states = await read()
    problems = [problem for state in states for problem in state.problems]
    if has_metrics and not problems and any(_has_no_metrics(state) for state in states):
        problems = ["metrics: they have none of the names that are read"]
    if problems:
        raise CheckError("; ".join(problems), "start the backend, correct the URLs, or set `health` and `metrics`")
    return ", ".join(_describe_state(state) for state in states)


def _has_no_metrics(state: BackendState) -> bool:
    return state.init_timestamp is None and state.decryption_errors is None and not state.keyring


def _describe_state(state: BackendState) -> str:
    assert state.health  # noqa: S101  # without it there is a problem
    counted = "with" if state.decryption_errors is not None else "without"
    mode = f"mode {state.health.mode}" if state.health.mode else "mode unknown"
    return f"{mode}, {'' if state.health.ready else 'not '}ready, {counted} metrics"
