"""The checks of a backend: it answers, KMS wraps its keys, its metrics are there, a record can be written and read."""

import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from shared.contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    CryptoMode,
)
from shared.secret_file import SecretFile
from shared.smoke.check import Check, Result, TroubleError, run
from shared.smoke.http import SECONDS, Answer, Server, connected

RECORD: Final = "keypulse-smoke"
"""One record, written anew each time, so that smoke tests leave nothing that grows."""
_FAMILIES: Final = (CRYPTO_MODE, CRYPTO_READY, CRYPTO_INIT_TIMESTAMP, CRYPTO_DECRYPTION_ERRORS)
_OURS: Final = b"keypulse smoke test "
_TRIES: Final = 5
_REFUSED: Final = "give a token that may use /v1/records: --token-file"


async def backend_checks(
    base_url: str,
    token: SecretFile | None = None,
    *,
    seconds: float = SECONDS,
    random: Callable[[int], str] = secrets.token_hex,
) -> list[Result]:
    """Looks at one backend; all is well where every result is `ok`.

    Args:
        base_url: such as `http://127.0.0.1:8000`.
        token: what `/v1/records` needs, if anything.
        seconds: for one whole answer.
        random: gives that many bytes in hexadecimal.

    Raises:
        ValueError: `base_url` is no address.
    """
    async with connected(base_url, token, seconds) as server:

        async def answers() -> str:
            return f"crypto_mode {(await _health(server))['crypto_mode']}"

        async def ready() -> str:
            health = await _health(server)
            if health["crypto_ready"] is not True:
                raise TroubleError(
                    f"crypto_ready is false: {health.get('reason') or 'it does not say why'}",
                    "see KMSCryptoNotReady in docs/KMS_OPERATIONS.md",
                )
            return "crypto_ready true"

        async def mode() -> str:
            found = (await _health(server))["crypto_mode"]
            if found != CryptoMode.KMS:
                raise TroubleError(
                    f"crypto_mode is {found}: KMS does not wrap its data keys",
                    "see KMSCryptoModeNotKMS in docs/KMS_OPERATIONS.md",
                )
            return "crypto_mode kms"

        checks = [
            Check("backend answers", answers),
            Check("backend is ready", ready, needs="backend answers"),
            Check("backend uses KMS", mode, needs="backend answers"),
            Check("backend's metrics", lambda: _metrics(server), needs="backend answers"),
            Check("a record is written and read", lambda: _record(server, random), needs="backend is ready"),
        ]
        return await run(checks, time.monotonic)


async def _health(server: Server) -> dict[str, Any]:
    answer = await server.get("/healthz")
    if answer.status not in {200, 503}:
        raise _unexpected("GET /healthz", answer, "give the address of a backend: --base-url")
    document = answer.json("GET /healthz")
    if not isinstance(document, dict) or not {"crypto_mode", "crypto_ready"} <= document.keys():
        raise TroubleError(
            "GET /healthz answers without crypto_mode and crypto_ready", "give the address of a backend: --base-url"
        )
    return document


async def _metrics(server: Server) -> str:
    answer = await server.get("/metrics")
    if answer.status != 200:
        raise _unexpected("GET /metrics", answer, "let this machine read it; the exporter needs it, too")
    missing = [n for n in _FAMILIES if not re.search(rb"^%s[ {]" % n.encode(), answer.body, re.MULTILINE)]
    if missing:
        raise TroubleError(
            f"GET /metrics has no {', '.join(missing)}",
            "the exporter carries these over: expose them, or update the backend",
        )
    return f"{len(_FAMILIES)} families"


async def _record(server: Server, random: Callable[[int], str]) -> str:
    """What is read must be what was written; where another smoke test has written meanwhile, once more."""
    path = f"/v1/records/{RECORD}"
    for _ in range(_TRIES):
        written = _OURS + random(16).encode()
        answer = await server.put(path, written)
        if answer.status != 204:
            raise _unexpected("writing a record", answer, _next_step(answer))
        answer = await server.get(path)
        if answer.status != 200:
            raise _unexpected("reading the record back", answer, _next_step(answer))
        if answer.body == written:
            return f"{len(written)} bytes as they were written"
        if not answer.body.startswith(_OURS):
            break
    raise TroubleError(
        "what was read is not what was written", "stop writing, and compare with a backup: data may be damaged"
    )


def _next_step(answer: Answer) -> str:
    return _REFUSED if answer.status in {401, 403} else "look at the backend's log"


def _unexpected(what: str, answer: Answer, todo: str) -> TroubleError:
    said = answer.body[:200].decode(errors="replace").strip()
    return TroubleError(f"{what} answers with HTTP {answer.status}{': ' + said if said else ''}", todo)
