"""A stand-in for GitHub's REST API, as far as environments of a repository go."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

TOKEN: Final = "ghs_a-token-of-a-job"
REPOSITORY: Final = "acme/ledger"
REVIEWED: Final[dict[str, Any]] = {
    "name": "production",
    "can_admins_bypass": False,
    "protection_rules": [
        {"id": 1, "type": "wait_timer", "wait_timer": 5},
        {
            "id": 2,
            "type": "required_reviewers",
            "prevent_self_review": True,
            "reviewers": [
                {"type": "User", "reviewer": {"login": "alice"}},
                {"type": "Team", "reviewer": {"slug": "security"}},
            ],
        },
    ],
}
"""As https://docs.github.com/en/rest/deployments/environments#get-an-environment shows it."""


@dataclass(frozen=True)
class Answer:
    """One answer of the API."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class StandIn:
    """Answers with its environments, or with `queue` first."""

    url: str = ""
    environments: dict[str, Any] = field(default_factory=lambda: {"production": REVIEWED})
    queue: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Of each request the target and the Authorization header."""

    def answer(self, path: str, authorization: str | None) -> Answer:
        self.requests.append((path, authorization))
        if self.queue:
            return self.queue.pop(0)
        if authorization != f"Bearer {TOKEN}":
            return Answer(401, {"message": "Bad credentials"})
        prefix, _, name = path.rpartition("/")
        if prefix.endswith(f"/repos/{REPOSITORY}/environments") and name in self.environments:
            return Answer(200, self.environments[name])
        return Answer(404, {"message": "Not Found"})


@contextmanager
def run_stand_in() -> Iterator[StandIn]:
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = stand_in.answer(self.path, self.headers["Authorization"])
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_CONNECT(self) -> None:
            stand_in.requests.append((self.path, self.headers["Proxy-Authorization"]))
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stand_in.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield stand_in
        server.shutdown()
