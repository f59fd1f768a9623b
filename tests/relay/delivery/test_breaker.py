"""What an attempt says of its channel: whether the next message is held back."""

from pathlib import Path

from services.relay.channels.port import SendError, SendReason, SendScope
from services.relay.outbox.channels import FAILURE_THRESHOLD
from services.relay.outbox.tables import CHANNELS
from tests.relay.delivery.worker_harness import rig
from tests.relay.served_relay import Scripted, hang, until


async def test_what_a_provider_that_works_puts_off_delays_no_other_message(tmp_path: Path) -> None:
    put_off = SendError(SendReason.SERVER_ERROR, SendScope.ATTEMPT, "one of two recipients later", provider_works=True)
    channel = Scripted(*[put_off] * (FAILURE_THRESHOLD + 1), hang)
    async with rig(tmp_path, a=channel) as it:
        await it.accept_events("firing")
        await until(lambda: len(channel.attempted) == FAILURE_THRESHOLD + 2)
        (state,) = await it.store.read(CHANNELS.fetch_all)
        assert (state.failures, state.is_down) == (0, False)
        await it.accept_events("firing", group="another")
        await until(lambda: len(channel.sent) == 1)
