"""Checks each service of an exporter's configuration as the exporter reads it: its mapping, its credentials."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial

from services.exporter.backend_reads import ReadBackend, build_read, open_backend_reader
from services.exporter.backends.reader import BackendReader
from services.exporter.config import ExporterSettings
from services.exporter.doctor import check_documents
from services.exporter.model import BackendState, Health
from shared.backend_contract import CryptoMode
from shared.check import Check, CheckError, CheckNotApplicable, CheckResult, run_checks


async def check_mapped_backends(settings: ExporterSettings) -> list[CheckResult]:
    """Check every entry of `backends`, each of its replicas."""
    async with AsyncExitStack() as stack:
        checks: list[Check] = []
        for backend in settings.backends:
            reader = await open_backend_reader(backend, settings.probe.timeout, stack)
            checks += _Service(backend.service, reader, build_read(backend, reader)).list_checks()
        return await run_checks(checks, time.monotonic)


class _Service:
    """One service, whose documents the first check reads and the others judge."""

    def __init__(self, name: str, reader: BackendReader, read: ReadBackend) -> None:
        self._name, self._reader, self._read = name, reader, read
        self._states: Sequence[BackendState] = ()

    def list_checks(self) -> Iterator[Check]:
        answers = f"{self._name} answers"
        yield Check(answers, partial(check_documents, self._reader, self._read_states))
        yield Check(f"{self._name} is ready", self._check_ready, depends_on=answers)
        yield Check(f"{self._name} uses KMS", self._check_mode, depends_on=answers)

    async def _read_states(self) -> Sequence[BackendState]:
        self._states = await self._read()
        return self._states

    def _list_healths(self) -> Iterator[Health]:
        for state in self._states:
            assert state.health  # noqa: S101  # the check that the others need has passed
            yield state.health

    async def _check_ready(self) -> str:
        for health in self._list_healths():
            if not health.ready:
                raise CheckError(f"it is not ready: {health.found}", "see KMSCryptoNotReady in docs/KMS_OPERATIONS.md")
        return "it is ready"

    async def _check_mode(self) -> str:
        for health in self._list_healths():
            if health.mode is None:
                raise CheckNotApplicable("its health document names no mode")
            if health.mode is not CryptoMode.KMS:
                raise CheckError(
                    f"its mode is {health.mode}: {health.found}", "see KMSCryptoModeNotKMS in docs/KMS_OPERATIONS.md"
                )
        return "its mode is kms"
