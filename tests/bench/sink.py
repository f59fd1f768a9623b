"""`python -m tests.bench.sink PORT`: takes what is sent to Slack and PagerDuty, as cheaply as Python can, and counts.

The same for whoever sends. It only looks for the group that a message names (`group-00042`), so it costs a sender
little of the machine. What a message looks like is judged elsewhere, by the demo's stand-ins.

- `POST /slack/…` is answered as by Slack's Web API, `POST /webhook` as by an incoming webhook of Slack's,
  `POST /pagerduty/…` as by PagerDuty's Events API.
- `POST /hang/…` is read and never answered.
- `GET /` tells for each provider how many messages came, how many different groups they named and when the last new one
  came (`time.monotonic`, which all processes of a machine share), and the first message.
"""

import asyncio
import json
import re
import sys
import time
from typing import Final

from shared.config.settings import Address
from shared.http.server import bind_socket
from shared.process.server import wait_for_stop_signal

_GROUP: Final = re.compile(rb"group-(\d{5})")
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED: Final = re.compile(rb"(?i)\r\ntransfer-encoding:")
_PAGERDUTY: Final = b'{"status":"success","message":"Event processed","dedup_key":"given"}'
_BACKLOG: Final = 4096


class Received:
    """What came for one provider."""

    def __init__(self) -> None:
        self.groups: set[bytes] = set()
        self.messages = 0
        self.last = 0.0
        self.first_message = ""

    def take(self, body: bytes) -> None:
        """Counts a message."""
        if not self.messages:
            self.first_message = body.decode(errors="replace")
        self.messages += 1
        named = _GROUP.search(body)
        if named and named[1] not in self.groups:
            self.groups.add(named[1])
            self.last = time.monotonic()

    def encode(self) -> dict[str, object]:
        """As JSON."""
        return {
            "groups": len(self.groups),
            "messages": self.messages,
            "last": self.last,
            "first_message": self.first_message,
        }


class Sink:
    """Both providers."""

    def __init__(self) -> None:
        self.slack = Received()
        self.pagerduty = Received()

    def answer(self, line: bytes, body: bytes) -> bytes | None:
        """The whole HTTP response to a request; None where there shall never be one."""
        if line.startswith(b"POST /hang/"):
            return None
        if line.startswith(b"POST /slack/"):
            self.slack.take(body)
            posted = b'{"ok":true,"channel":"C0000000001","ts":"1700000000.%06d"}' % self.slack.messages
            return _response(b"200 OK", b"application/json", posted)
        if line.startswith(b"POST /webhook"):
            self.slack.take(body)
            return _response(b"200 OK", b"text/html", b"ok")
        if line.startswith(b"POST /pagerduty/"):
            self.pagerduty.take(body)
            return _response(b"202 Accepted", b"application/json", _PAGERDUTY)
        messages = {"slack": self.slack.encode(), "pagerduty": self.pagerduty.encode()}
        return _response(b"200 OK", b"application/json", json.dumps(messages).encode())


class Connection(asyncio.Protocol):
    """One connection, kept open for as many requests as the client likes."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            assert not _CHUNKED.search(head), "neither Alertmanager nor the relay sends a body in chunks"
            length = _LENGTH.search(head)
            until = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < until:
                return
            body, self._buffer = self._buffer[end + 4 : until], self._buffer[until:]
            answer = self._sink.answer(head, body)
            if answer is not None and self._transport is not None:
                self._transport.write(answer)


def _response(status: bytes, kind: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (status, kind, len(body), body)


async def _serve(port: int) -> None:
    sink = Sink()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(sink), sock=bind_socket(Address("127.0.0.1", port)), backlog=_BACKLOG
    )
    async with server:
        await wait_for_stop_signal()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
