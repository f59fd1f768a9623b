"""Google's APIs on loopback: each request and answer is held against Google's own discovery documents."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.ops.audit.discovery import AgainstDiscoveryError, Method, methods


@dataclass(frozen=True)
class ReceivedRequest:
    """One request."""

    method: str
    path: dict[str, str]
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class RefusedError(Exception):
    """An answer that is an error of Google's."""

    def __init__(self, status: int, message: str = "no", reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"Retry-After": "7"} if status == 429 else {}
        error: dict[str, Any] = {"code": status, "message": message}
        if reason:
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]
        self.body: Any = {"error": error}
        self.raw: bytes | None = None
        """What is answered instead of JSON."""


Handler = Callable[[ReceivedRequest], Any]


@dataclass
class Fault:
    """What happens to some of the requests of a method."""

    method: str
    times: int = 1
    before: Callable[[], None] = lambda: None
    """Is done before the request is answered: what somebody else does meanwhile."""
    refuse: RefusedError | None = None
    late: bool = False
    """Whether it is done nevertheless: only the answer is lost."""


@dataclass
class Stand:
    """The server's side: what it answers with, and what it has seen."""

    handle: Handler
    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    """What was not as Google's documents have it."""
    faults: list[Fault] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    """Methods that are refused for want of a permission."""

    def reset(self, handle: Handler) -> None:
        """Forgets everything, and answers with another world."""
        self.handle = handle
        for recorded in (self.requests, self.against, self.faults, self.denied):
            recorded.clear()

    def names(self) -> list[str]:
        """The methods that were called."""
        return [request.method for request in self.requests]

    def answer(self, request: ReceivedRequest) -> Any:
        self.requests.append(request)
        if request.method in self.denied:
            raise RefusedError(403, "The caller does not have permission")
        fault = next((each for each in self.faults if each.method == request.method and each.times > 0), None)
        if fault is None:
            return self.handle(request)
        fault.times -= 1
        fault.before()
        if fault.refuse is None or fault.late:
            answer = self.handle(request)
        if fault.refuse:
            raise fault.refuse
        return answer


@cache
def _list_methods() -> list[Method]:
    return methods()


def _routed(verb: str, path: str) -> tuple[Method, dict[str, str]]:
    for method in _list_methods():
        found = method.path.fullmatch(path) if method.verb == verb else None
        if found:
            return method, {name: unquote(value) for name, value in found.groupdict().items()}
    raise AgainstDiscoveryError(f"no method is at {verb} {path}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body in one packet, which nobody waits 40 ms for
    stand: Stand

    def log_message(self, *_: Any) -> None:
        pass

    def _any(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        try:
            method, path = _routed(self.command, url.path)
            method.check_query(query)
            method.check_body(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            name = f"{method.name}_media" if query.get("alt") == "media" else method.name
            answer = self.stand.answer(ReceivedRequest(name, path, query, headers, body))
            if isinstance(answer, bytes):
                self._send(200, answer, {})
                return
            method.check_answer(answer)
            self._send(200, json.dumps(answer).encode(), {})
        except RefusedError as refused:
            self._send(refused.status, refused.raw or json.dumps(refused.body).encode(), refused.headers)
        except AgainstDiscoveryError as error:
            self.stand.against.append(str(error))
            self._send(418, b"", {})

    do_GET = do_POST = do_PUT = do_PATCH = _any  # noqa: N815 - http.server's names

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handle: Handler) -> Iterator[Stand]:
    """The server for as long as the context lasts; what was against the documents fails then."""
    stand = Stand(handle)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand": stand})) as server:
        server.daemon_threads = True
        stand.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stand
        finally:
            server.shutdown()
            thread.join()
    assert stand.against == []
