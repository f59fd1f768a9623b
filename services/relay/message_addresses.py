"""Where a person reads a message at its provider: a receipt goes in, the address comes out.

Slack's receipt has no address, and the workspace's name is known to Slack alone; so it is asked when a person follows
the link.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from services.relay.channels.port import AddressingChannel, ChannelSettings, Receipt
from services.relay.delivery.attempt import close_channel
from services.relay.send_error import SendError

_SECONDS: Final = 5.0
_MAX_REQUESTS: Final = 4
"""At the same time."""


class NoAddressError(Exception):
    """There is no address; the message is a sentence that says why, without its full stop."""


class MessageAddresses:
    """Asks the providers.

    Args:
        channels: the configured ones.
    """

    def __init__(self, channels: Mapping[str, ChannelSettings]) -> None:
        self._channels = channels
        self._requests = asyncio.Semaphore(_MAX_REQUESTS)

    def can_find(self, channel_name: str, receipt: Receipt | None) -> bool:
        """Whether the provider can be asked."""
        settings = self._channels.get(channel_name)
        return settings is not None and receipt is not None and settings.has_address(receipt)

    async def find(self, channel_name: str, receipt: Receipt | None) -> str:
        """The address of the message. Raises NoAddressError."""
        if receipt is None or not self.can_find(channel_name, receipt):
            raise NoAddressError("its provider names none, or its channel is not configured any more")
        channel = self._channels[channel_name].connect(_SECONDS)
        try:
            async with asyncio.timeout(_SECONDS), self._requests:
                if isinstance(channel, AddressingChannel):
                    return await channel.find_address(receipt)
            raise NoAddressError("its provider names none")
        except SendError as error:
            raise NoAddressError(str(error)) from None
        except TimeoutError:
            raise NoAddressError(f"the provider did not answer within {_SECONDS:g} s; try again") from None
        finally:
            await close_channel(channel_name, channel)
