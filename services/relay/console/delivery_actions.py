"""What people do with one delivery, by API or on its page: retry it, send it elsewhere."""

from collections.abc import Callable, Collection, Iterable

from starlette.requests import Request

from services.relay.metrics import Metrics
from services.relay.outbox.engine.store import Store
from services.relay.outbox.operators.audit import Actor
from services.relay.outbox.operators.retry import retry_delivery
from services.relay.outbox.operators.sending_elsewhere import send_elsewhere
from services.relay.outbox.queries.delivery_list import DeliverySummary
from services.relay.outbox.tables import DeliveryState, clean_for_database
from shared.http.authorization import describe_action, get_caller, get_peer


class UnknownChannelError(Exception):
    """There is no such channel; the message is a sentence with those that are there."""


class DeliveryActions:
    """The actions, for requests whose path names a delivery as `id`.

    Args:
        store: the outbox.
        channels: the configured names.
        wake_channels: called with the channels that have something new to deliver.
        metrics: counts what was merged into something newer.
    """

    def __init__(
        self,
        store: Store,
        channels: Collection[str],
        wake_channels: Callable[[Iterable[str]], None],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self.channels = channels
        self._wake_channels = wake_channels
        self._metrics = metrics

    async def retry(self, request: Request) -> DeliverySummary:
        """Sends a dead letter again, and a waiting delivery at once; gives it as it stands then.

        Raises:
            UnknownDeliveryError: nothing was changed.
            NotRetryableError: nothing was changed.
            StoreUnavailableError: it is not known how it stands.
        """
        describe_action(request, is_stored=True)  # with what it changes
        actor = Actor(get_caller(request).name, get_peer(request))
        delivery_id = clean_for_database(request.path_params["id"])
        now = await retry_delivery(self._store, delivery_id, self.channels, actor)
        self._wake_channels([now.channel])
        return now

    async def send(self, request: Request, channel: str) -> str:
        """Sends the current state of its incident to another channel; gives the id of the delivery there.

        Raises:
            UnknownChannelError: nothing was changed.
            UnknownDeliveryError: nothing was changed.
            NotSendableError: nothing was changed.
            StoreUnavailableError: it is not known to be committed.
        """
        delivery_id = clean_for_database(request.path_params["id"])
        describe_action(request, channel=channel, is_stored=True)  # with what it changes
        if channel not in self.channels:
            raise UnknownChannelError(f"no such channel; expected one of {', '.join(sorted(self.channels))}")
        sent = await send_elsewhere(
            self._store, delivery_id, channel, who=get_caller(request).name, peer=get_peer(request)
        )
        for _ in range(sent.superseded_count):
            self._metrics.count_delivery(channel, DeliveryState.SUPERSEDED)
        self._wake_channels([channel])
        return sent.delivery_id
