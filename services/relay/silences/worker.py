"""Creates the silences that people request in Slack or in the console, and answers them.

For each: may the person silence, is there something to silence, in which Alertmanager; then the silence itself, and
what became of it. In Slack the answer is a reply in the thread where it is silenced, or else a message that only the
person sees; in the console the incident's timeline shows it. The mark of its incident in a silence's comment lets one
be found whose answer was lost, so that none is created twice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from html import escape
from typing import Any, Final

import structlog

from services.relay.acknowledgement.socket_mode import SlackWebApi, open_bots
from services.relay.apis import AlertmanagerClient, ApiError, NewSilence
from services.relay.channels.port import SendError
from services.relay.config import RelaySettings, SilenceSettings
from services.relay.outbox.breaker import take_token
from services.relay.outbox.store import RETRY_SECONDS, Store, StoreUnavailableError
from services.relay.silences.store import (
    SilenceLeaseLostError,
    SilenceRefusedError,
    SilenceRow,
    SilenceState,
    begin_silence,
    claim_silence,
    finish_silence,
    has_due,
    is_final,
    postpone_silence,
    read_shared_labels,
    record_answer,
)
from services.relay.text import clean_line, sort_labels, truncate
from shared.process.concurrency import run_beside
from shared.process.logs import describe_exception

LEASE_SECONDS: Final = 60.0
"""Longer than all calls for one silence together."""
_STEP_SECONDS: Final = 45.0
_MAX_ATTEMPTS: Final = 8
_RETRY_INITIAL: Final = 1.0
_MAX_RETRY: Final = 30.0
_MAX_MATCHERS: Final = 1000
"""Characters of them in the answer."""
_POLL_SECONDS: Final = 2.0
"""In which a worker notices what another replica left."""

log = structlog.get_logger(__name__)


class SilenceWorker:
    """Creates silences while `run` runs."""

    def __init__(
        self,
        store: Store,
        settings: RelaySettings,
        bots: Mapping[str, SlackWebApi],
        alertmanagers: Sequence[AlertmanagerClient],
    ) -> None:
        self._store = store
        self._settings = settings
        self._bots = bots
        self._alertmanagers = {each.url: each for each in alertmanagers}
        self._wake_event = asyncio.Event()

    def wake(self) -> None:
        self._wake_event.set()

    async def run(self) -> None:
        while True:
            self._wake_event.clear()
            try:
                has_worked = await self.work_once()
            except StoreUnavailableError:  # the store has logged it
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001  # of one silence must not end the others
                log.error("unexpected error while a silence was created", **describe_exception(error))  # noqa: TRY400  # its text may hold a secret
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if not has_worked:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_POLL_SECONDS):
                            await self._wake_event.wait()

    async def work_once(self) -> bool:
        """Work on the silence that has waited longest; False where none waits. Raises StoreUnavailableError."""
        if not await self._store.read(partial(has_due, clock=self._store.clock)):
            return False
        row = await claim_silence(self._store, LEASE_SECONDS)
        if row is None:
            return False
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                await (self._answer(row) if is_final(row) else self._create(row))
        except (SendError, ApiError, TimeoutError) as error:
            await self._retry(row, str(error) or "no answer in time")
        except SilenceLeaseLostError:
            log.warning("a silence took longer than its lease; another replica goes on", incident_id=row.incident_id)
        return True

    async def _create(self, row: SilenceRow) -> None:
        try:
            silence_id, detail = await self._find_or_create(row)
        except SilenceRefusedError as error:
            await finish_silence(self._store, row, SilenceState.REFUSED, str(error))
            log.warning("a silence was refused", incident_id=row.incident_id, who=row.who, error=str(error))
        else:
            await finish_silence(self._store, row, SilenceState.CREATED, detail, silence_id)
            log.info("silence created", incident_id=row.incident_id, who=row.who, silence_id=silence_id)

    async def _find_or_create(self, row: SilenceRow) -> tuple[str, str]:
        """The ID of the silence, and the answer to the person."""
        mark = f"[keypulse {row.incident_id[:16]}/{row.episode}]"
        if row.state == SilenceState.CREATING:
            # It may exist: an earlier attempt was about to create it, there and nowhere else. So it is looked for
            # first, whatever became of the incident since.
            client = self._alertmanagers.get(row.alertmanager or "")
            if client is None:
                raise SilenceRefusedError(f"{row.alertmanager} is not configured any more; see whether it is silenced.")
            created_by, ends_at = row.created_by or row.who, row.ends_at or 0.0
            for made in await client.find_silences(mark):
                if abs(made.ends_at.timestamp() - ends_at) < 1.0:  # one of another press may have other labels
                    return made.id, _describe(created_by, ends_at, {each.name: each.value for each in made.matchers})
            labels = await self._read_labels(row)
        else:
            # Who asked in the console is an admin.
            created_by = await self._check_permission(row) if row.is_from_slack else row.who
            client = await self._find_alertmanager(await self._read_labels(row))
            plan = await begin_silence(
                self._store,
                row,
                seconds=row.seconds or self._settings.interactive.silence.max,
                alertmanager=client.url,
                created_by=created_by,
            )
            labels, ends_at = plan.labels, plan.ends_at
            found = next((each for each in await client.find_silences(mark) if each.covers(labels)), None)
            if found is not None:
                raise SilenceRefusedError(f"It is silenced already, by {truncate(clean_line(found.created_by), 80)}.")
        silence = NewSilence(labels, ends_at, created_by, f"{_format_comment(row, created_by)} {mark}")
        try:
            silence_id = await client.create_silence(silence, self._store.clock())
        except ApiError as error:
            if error.is_refusal:
                raise SilenceRefusedError(f"Alertmanager did not take the silence: {error}.") from None
            raise
        return silence_id, _describe(created_by, ends_at, labels)

    async def _check_permission(self, row: SilenceRow) -> str:
        bot = self._bots.get(row.channel)
        if bot is None:
            raise SilenceRefusedError("The channel is not configured any more.")
        return await check_permission(bot, row.user_id, self._settings.interactive.silence)

    async def _read_labels(self, row: SilenceRow) -> Mapping[str, str]:
        labels = await self._store.read(partial(read_shared_labels, incident_id=row.incident_id, episode=row.episode))
        if labels is None:
            raise SilenceRefusedError("Nothing to silence: this incident is over.")
        if not labels:
            raise SilenceRefusedError("Its group has no labels: a silence would match alerts of other groups.")
        return labels

    async def _find_alertmanager(self, labels: Mapping[str, str]) -> AlertmanagerClient:
        """The first that has an alert with these labels: several may know nothing of each other."""
        errors = []
        for client in self._alertmanagers.values():
            try:
                state = await client.read_state()
            except ApiError as error:
                errors.append(f"{error}")
                continue
            if any(labels.items() <= each.items() for each in state.labels_by_fingerprint.values()):
                return client
        if errors:
            raise ApiError(errors[0])
        raise SilenceRefusedError("Nothing to silence: Alertmanager has no such alert now.")

    async def _answer(self, row: SilenceRow) -> None:
        bot = self._bots.get(row.channel)
        if bot is not None and row.detail:
            where = {"channel": row.slack_channel, "text": escape(row.detail, quote=False), "parse": "none"}
            # A post takes a token of the channel's rate; where it gets none in time, only the person sees the answer.
            if row.state != SilenceState.CREATED or row.attempts == _MAX_ATTEMPTS:
                await bot.call("chat.postEphemeral", **where, user=row.user_id)
            elif wait := await self._store.run(
                partial(take_token, channel=row.channel, rate=self._settings.get_rate(row.channel))
            ):
                await postpone_silence(self._store, row, wait)
                return
            else:
                await bot.call("chat.postMessage", **where, thread_ts=row.thread)
        await record_answer(self._store, row)

    async def _retry(self, row: SilenceRow, error: str) -> None:
        log.warning("a silence is tried again", incident_id=row.incident_id, attempt=row.attempts, error=error)
        if row.attempts < _MAX_ATTEMPTS:
            await postpone_silence(self._store, row, min(_RETRY_INITIAL * 2.0 ** (row.attempts - 1), _MAX_RETRY))
        elif is_final(row):
            await record_answer(self._store, row)
        else:
            detail = f"The silence failed: {error}. Look in Alertmanager whether it is there."
            await finish_silence(self._store, row, SilenceState.FAILED, detail)


async def check_permission(bot: SlackWebApi, user_id: str, rules: SilenceSettings) -> str:
    """The name of a person whom the configuration lets silence, and who is no guest.

    Raises:
        SilenceRefusedError: for anybody else.
        SendError: Slack cannot say.
    """
    user: Any = (await bot.call("users.info", user=user_id)).get("user")
    if not isinstance(user, dict) or user.get("id") != user_id or user.get("team_id") != await bot.read_team():
        raise SilenceRefusedError("Only members of this workspace can silence.")
    if any(user.get(key) for key in ("is_restricted", "is_ultra_restricted", "deleted", "is_bot")):
        raise SilenceRefusedError("Guests cannot silence.")
    if user_id not in rules.allow_users and not await _is_in_group(bot, user_id, rules.allow_groups):
        raise SilenceRefusedError(
            "You are not among those who may silence: `interactive.silence` of the relay names them."
        )
    return truncate(clean_line(str(user.get("real_name") or user.get("name") or user_id)), 80)


async def _is_in_group(bot: SlackWebApi, user_id: str, groups: Collection[str]) -> bool:
    for group in groups:
        members = (await bot.call("usergroups.users.list", usergroup=group)).get("users")
        if isinstance(members, list) and user_id in members:
            return True
    return False


def _format_comment(row: SilenceRow, created_by: str) -> str:
    if row.is_from_slack:
        return f"Silenced in Slack by {created_by} ({row.user_id})"
    return " ".join(filter(None, [row.comment, f"Silenced in the relay's console by {created_by}"]))


def _describe(created_by: str, ends_at: float, labels: Mapping[str, str]) -> str:
    matchers = ", ".join(f'{name}="{value}"' for name, value in sort_labels(labels))
    until = datetime.fromtimestamp(ends_at, UTC)
    return f"Silenced by {created_by} until {until:%Y-%m-%d %H:%M UTC}: {truncate(matchers, _MAX_MATCHERS)}."


@asynccontextmanager
async def run_silences(settings: RelaySettings, store: Store) -> AsyncIterator[Callable[[], None] | None]:
    """Creates the silences that wait in the outbox while the body runs.

    Yields:
        What to call when one waits; None without an Alertmanager.
    """
    alertmanager = settings.alertmanager
    if not alertmanager.urls:
        yield None
        return
    async with AsyncExitStack() as stack:
        bots = open_bots(settings, stack)
        peers = [AlertmanagerClient(url, alertmanager.token_file, alertmanager) for url in alertmanager.urls]
        for peer in peers:
            stack.push_async_callback(peer.close)
        worker = SilenceWorker(store, settings, bots, peers)
        await stack.enter_async_context(run_beside(worker.run()))
        yield worker.wake
