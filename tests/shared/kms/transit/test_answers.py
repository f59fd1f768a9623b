"""Answers that no healthy OpenBao gives, and those of Vault → a failure, and never a wrong version."""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.kms.port import KmsError
from shared.kms.reason import Cause, Reason
from shared.kms.transit.client import TransitKey
from shared.kms.transit.settings import TransitKeySettings

KEY = {"data": {"type": "aes256-gcm96", "latest_version": 3, "min_decryption_version": 1, "keys": {"3": 1}}}
GOOD = {"data": {"ciphertext": "vault:v3:AAAA", "key_version": 3}}
PLAINTEXT = {"data": {"plaintext": b64encode(b"text").decode()}}
LOOKUP = {"data": {"ttl": 0, "creation_ttl": 0}}
DENIED = {"errors": ["permission denied"]}
Answers = dict[str, tuple[int, Any]]
"""Status and document by the second part of a path; a document of bytes is sent as it is."""


@contextmanager
def served(answers: Answers) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, document = answers[self.path.split("/")[3]]
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  http.server's

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


MALFORMED = (Reason.UNAVAILABLE, Cause.MALFORMED_ANSWER)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (None, Cause.NONE)),
        ({"encrypt": (200, {"data": {"ciphertext": "vault:v2:AAAA", "key_version": 3}})}, MALFORMED),
        ({"encrypt": (200, {"data": {"ciphertext": "AAAA", "key_version": 3}})}, MALFORMED),
        ({"encrypt": (200, {"data": {"ciphertext": "vault:v3:AAAA"}})}, MALFORMED),
        ({"encrypt": (200, b"<html>welcome</html>")}, MALFORMED),
        ({"encrypt": (200, b" " * (1 << 20) + b"{}")}, MALFORMED),
        ({"decrypt": (200, {"data": {"plaintext": "no base64!"}})}, MALFORMED),
        ({"keys": (200, {"data": {"type": "aes256-gcm96"}})}, MALFORMED),
        # Vault's text for a policy may be that of a bad token; its token can be looked up all the same.
        ({"encrypt": (403, DENIED)}, (Reason.PERMISSION_DENIED, Cause.ROLE_MISSING)),
        ({"encrypt": (403, DENIED), "token": (403, DENIED)}, (Reason.UNAUTHENTICATED, Cause.TOKEN_EXPIRED)),
    ],
)
async def test_an_answer_that_cannot_be_right_is_a_failure(
    tmp_path: Path, changes: Answers, expected: tuple[Reason | None, Cause]
) -> None:
    token = tmp_path / "token"
    token.write_text("s.token")
    usual: Answers = {"keys": (200, KEY), "encrypt": (200, GOOD), "decrypt": (200, PLAINTEXT), "token": (200, LOOKUP)}
    with served({**usual, **changes}) as address:
        settings = TransitKeySettings.model_validate(
            {"address": address, "key": "ledger", "auth": {"token_file": token}, "proxy": "none"}
        )
        key = TransitKey(settings)
        found: tuple[Reason | None, Cause] = None, Cause.NONE
        try:
            encrypted = await key.encrypt(b"text", b"aad", timeout=5)
            decrypted = await key.decrypt(encrypted.ciphertext, b"aad", timeout=5)
        except KmsError as error:
            found = error.reason, error.cause
        else:
            assert (encrypted.version, decrypted.plaintext, decrypted.is_primary) == ("3", b"text", True)
        finally:
            await key.close()
    assert found == expected
