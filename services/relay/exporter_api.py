"""Reads from the exporter when a key began to fail: the fault behind an incident. Answers are kept for a moment.

It is read when somebody looks at an incident, never by intake or delivery. The exporter knows what happened since its
start, and no more.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from services.relay.http_session import HttpSession, translate_connection_errors
from services.relay.send_error import SendError
from shared.check import CheckError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.http.untrusted_json import UntrustedJsonError, decode_json
from shared.net.egress import EgressSettings
from shared.process.concurrency import run_in_thread_if_large

TIMEOUT: Final = 3.0
"""Seconds for one answer."""
_MAX_BYTES: Final = 1024 * 1024
_MAX_CONCURRENT: Final = 4
_KEEP_SECONDS: Final = 15.0
"""For which an answer, or an error, is shown again without another request."""
_MAX_ANSWERS: Final = 256
_PROVIDER: Final = "the exporter"
_MAX_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class KeyFailure:
    """Failures of one kind in a row, as the exporter saw them. Times are unix seconds."""

    target: str
    operation: str
    reason: str
    detail: str
    first_at: float
    last_at: float
    count: int
    is_current: bool
    """Whether the last round trip failed in this way."""


@dataclass(frozen=True, slots=True)
class FailureHistory:
    """What the exporter knows of a key or a service, or why it does not say."""

    failures: Sequence[KeyFailure] = ()
    """The oldest first."""
    recorded_since: float | None = None
    """When the exporter started; None if there was no answer."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Whose failures are read: those of a key, or of all keys of a service."""

    name: str
    """`target` or `service`."""
    value: str


class ExporterError(Exception):
    """The exporter gave no answer that can be used; the text says why, without secrets.

    Args:
        text: why.
        is_refusal: whether it wants other credentials.
    """

    def __init__(self, text: str, *, is_refusal: bool = False) -> None:
        super().__init__(text)
        self.is_refusal = is_refusal


_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _Failure(msgspec.Struct, gc=False):
    target: str
    operation: str
    reason: str
    first_at: _Moment
    last_at: _Moment
    detail: str = ""
    count: int = 1
    is_current: bool = False


class _Answer(msgspec.Struct, gc=False):
    since: _Moment
    failures: list[_Failure]


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class ExporterHistory:
    """Reads `GET /api/history` of one exporter.

    Args:
        url: of the board, without its last slash; None where `messages.board_url` is not set.
        token_file: a viewer's token; None sends nothing.
        egress: how the exporter is reached.
        monotonic: seconds.
    """

    def __init__(
        self,
        url: str | None,
        token_file: Path | None = None,
        egress: EgressSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._token = SecretFile(token_file) if token_file else None
        self._session = HttpSession(_PROVIDER, egress=egress)
        self._monotonic = monotonic
        self._answers: OrderedDict[HistoryQuery, tuple[float, FailureHistory]] = OrderedDict()
        self._reads: dict[HistoryQuery, asyncio.Task[FailureHistory]] = {}
        self._semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

    @property
    def is_configured(self) -> bool:
        """Whether there is an exporter to ask."""
        return self._url is not None

    def get_answer(self, query: HistoryQuery) -> FailureHistory | None:
        """The last answer; None if there is none."""
        last = self._answers.get(query)
        return last[1] if last else None

    def is_current(self, query: HistoryQuery) -> bool:
        """Whether the last answer is of a moment ago."""
        last = self._answers.get(query)
        return last is not None and self._monotonic() - last[0] < _KEEP_SECONDS

    async def read(self, query: HistoryQuery) -> FailureHistory:
        """What the exporter knows, within `TIMEOUT`; its `error` says why it knows nothing. Callers share reads."""
        if self.is_current(query):
            return self._answers[query][1]
        if query not in self._reads:
            if len(self._reads) >= _MAX_ANSWERS:
                return FailureHistory(error="too many incidents are looked at; reload the page in a moment")
            self._reads[query] = asyncio.create_task(self._read_and_store(query))
        return await asyncio.shield(self._reads[query])

    async def check(self) -> str:
        """For `doctor`: whether the exporter answers. Raises CheckError."""
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await self._request({})
        except TimeoutError:
            raise CheckError(f"no answer within {TIMEOUT:g} s", "see whether the exporter runs there") from None
        except ExporterError as error:
            hint = "name a viewer's token in `messages.board_token_file`" if error.is_refusal else "correct the URL"
            raise CheckError(str(error), hint) from None
        return f"it knows {len(answer.failures)} failures of keys"

    async def close(self) -> None:
        """Ends what is being read, and closes the connections."""
        for task in self._reads.values():
            task.cancel()
        await asyncio.gather(*self._reads.values(), return_exceptions=True)
        await self._session.close()

    async def _read_and_store(self, query: HistoryQuery) -> FailureHistory:
        try:
            async with asyncio.timeout(TIMEOUT), self._semaphore:
                answer = await self._request({query.name: query.value})
            history = _build_history(answer)
        except TimeoutError:
            history = FailureHistory(error=f"no answer within {TIMEOUT:g} s")
        except ExporterError as error:
            history = FailureHistory(error=str(error))
        finally:
            self._reads.pop(query, None)
        self._answers[query] = self._monotonic(), history
        self._answers.move_to_end(query)
        if len(self._answers) > _MAX_ANSWERS:
            self._answers.popitem(last=False)
        return history

    async def _request(self, parameters: dict[str, str]) -> _Answer:
        body = bytearray()
        try:
            headers = {"Authorization": f"Bearer {self._token.read_value()}"} if self._token else {}
            with translate_connection_errors(_PROVIDER):
                async with self._session.open().get(
                    f"{self._url}/api/history", params=parameters, headers=headers
                ) as answer:
                    if answer.status == 404 and "target" in parameters:
                        raise ExporterError("it does not watch this key (HTTP 404)")
                    if answer.status != 200:
                        is_refusal = answer.status in {401, 403}
                        raise ExporterError(f"it answered HTTP {answer.status}", is_refusal=is_refusal)
                    async for chunk in answer.content.iter_any():
                        body += chunk
                        if len(body) > _MAX_BYTES:
                            raise ExporterError(f"its answer is over {_MAX_BYTES} bytes")
            return await run_in_thread_if_large(len(body), lambda: decode_json(_ANSWER, bytes(body)))
        except (SendError, SecretUnreadableError) as error:
            raise ExporterError(str(error)) from None
        except UntrustedJsonError:
            raise ExporterError("its answer is not that of keypulse's exporter") from None


def _build_history(answer: _Answer) -> FailureHistory:
    failures = [
        KeyFailure(
            each.target,
            each.operation,
            each.reason,
            each.detail[:_MAX_TEXT],
            each.first_at.timestamp(),
            each.last_at.timestamp(),
            each.count,
            each.is_current,
        )
        for each in answer.failures
    ]
    return FailureHistory(sorted(failures, key=lambda each: each.first_at), answer.since.timestamp())
