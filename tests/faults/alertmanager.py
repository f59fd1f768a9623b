"""An Alertmanager that never gives up: webhooks come in, each is posted until the relay has taken it."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

import aiohttp

from tests.faults.incidents import RECEIVER, Webhook
from tests.relay.served_relay import TOKEN

RETRY_SECONDS = 0.1
PLAY_SECONDS = 600.0
ANSWER_SECONDS = 10.0
"""What Alertmanager gives a webhook, at least."""


class Alertmanager:
    """Posts to any of the relays, as through a load balancer.

    Args:
        urls: of the relays.
        random: chooses among them, and when to send what another Alertmanager of a pair has sent already.
        pause: seconds between two webhooks of a group, on average.
        timeout: seconds that it waits for an answer.
        repeats: how many of its webhooks the other of the pair, or a second receiver of the group, sends as well.
    """

    def __init__(
        self,
        urls: Sequence[str],
        random: Random,
        *,
        pause: float = 0.2,
        timeout: float = ANSWER_SECONDS,
        repeats: float = 0.2,
    ) -> None:
        self._urls = urls
        self._random = random
        self._pause = pause
        self._repeats = repeats
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self.accepted: list[str] = []
        """The id of each event that was answered 202."""
        self.refusals: Counter[str] = Counter()
        """How often it had to ask again, by the answer's status; `none` where there was no answer."""

    async def play(self, histories: Iterable[Iterable[Webhook]]) -> None:
        """Posts the webhooks of each group in their order, and all groups at once.

        Raises:
            TimeoutError: the relay did not take them in any reasonable time.
        """
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            asyncio.timeout(PLAY_SECONDS),
            aiohttp.ClientSession(headers=headers, timeout=self._timeout) as http,
            asyncio.TaskGroup() as groups,
        ):
            for history in histories:
                groups.create_task(self._play(http, history))

    async def _play(self, http: aiohttp.ClientSession, history: Iterable[Webhook]) -> None:
        for webhook in history:
            await self._post(http, webhook.body)
            if self._random.random() < self._repeats:
                receiver = self._random.choice([RECEIVER, "second"])
                await self._post(http, webhook.body.replace(f'"{RECEIVER}"'.encode(), f'"{receiver}"'.encode()))
            await asyncio.sleep(self._random.uniform(0, 2 * self._pause))

    async def _post(self, http: aiohttp.ClientSession, body: bytes) -> None:
        while True:
            url = self._random.choice(self._urls)
            try:
                async with http.post(f"{url}/alerts", data=body) as response:
                    if response.status in (200, 202):
                        if response.status == 202:
                            self.accepted.append((await response.json())["event_id"])
                        return
                    # To any other answer Alertmanager would not ask again, and nobody would be told.
                    assert response.status >= 500, await response.text()
                    self.refusals[str(response.status)] += 1
            except (aiohttp.ClientError, TimeoutError):
                self.refusals["none"] += 1
            await asyncio.sleep(RETRY_SECONDS)
