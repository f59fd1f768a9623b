"""What an attempt says of its channel: whether the next message is held back."""

from pathlib import Path

from services.relay.channels.channel import Reason, Scope, SendError
from services.relay.outbox import query
from services.relay.outbox.gate import BREAKS_AFTER
from tests.relay.delivery.rig import rig
from tests.relay.scripted import Scripted, hang, until


async def test_what_a_provider_that_works_puts_off_holds_back_no_other_message(tmp_path: Path) -> None:
    put_off = SendError(Reason.SERVER_ERROR, Scope.ATTEMPT, "one of two recipients later", reached=True)
    channel = Scripted(*[put_off] * (BREAKS_AFTER + 1), hang)
    async with rig(tmp_path, a=channel) as it:
        await it.tell("firing")
        await until(lambda: len(channel.tried) == BREAKS_AFTER + 2)
        (state,) = await it.store.read(query.channels)
        assert (state.failures, state.refused) == (0, False)
        await it.tell("firing", group="another")
        await until(lambda: len(channel.sent) == 1)
