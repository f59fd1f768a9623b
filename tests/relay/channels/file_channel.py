"""A channel of another kind: each message is a line of a file.

It is complete: whatever the relay does with its own kinds it does with this one. The file and one member of the union
in `services.relay.channels.registry` are all that it takes; `register` adds the member.
"""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from services.relay.channels import registry
from services.relay.channels.port import Attempt, ChannelSettings, Receipt, SendError, SendReason, SendScope
from services.relay.channels.requests import call_provider
from services.relay.model import Message
from shared.check import Check


def register() -> None:
    """Adds the kind; before the relay's configuration is imported, as by a line of the registry itself."""
    kinds = get_args(registry.AnyChannel)[0]
    vars(registry)["AnyChannel"] = Annotated[kinds | FileSettings, Field(discriminator="kind")]


class FileSettings(ChannelSettings):
    """A file that exists."""

    merges_waiting: ClassVar[bool] = False

    kind: Literal["file"]
    path: Path

    @property
    def destination(self) -> str:
        """See the base."""
        return self.path.name

    def connect(self, timeout: float) -> "FileChannel":
        """See the base."""
        return FileChannel(self.path, timeout)


class FileChannel:
    """Appends to the file."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path, self._timeout = path, timeout

    async def send(self, attempt: Attempt) -> Receipt:
        line = self.render_payload(attempt.message)
        async with call_provider(attempt, "the file", self._timeout) as call:
            call.before_request(line)
            try:
                with self._path.open("r+", encoding="utf-8") as file:
                    number = len(file.readlines()) + 1
                    file.write(f"{line}\n")
            except OSError as error:
                raise SendError(SendReason.MISCONFIGURED, SendScope.CHANNEL, f"{self._path}: {error}") from None
            call.record_reply("written")
        return {"line": str(number)}

    def render_payload(self, message: Message) -> str:
        event = message.event
        return json.dumps({"alertname": event.group_labels.get("alertname"), "status": event.status})

    def read_secret_versions(self) -> Hashable:
        return None

    def list_checks(self, key: str) -> Sequence[Check]:  # noqa: ARG002  # the port's
        return ()

    async def close(self) -> None:
        pass
