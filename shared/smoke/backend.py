"""Checks a backend: health, mode, metrics, data keys, that its admin API is closed, and that records can be read again.

A service needs neither a keyring of this kind, nor the admin API, nor records: what it does not have is not checked.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal

from shared.backend_contract import (
    CRYPTO_DECRYPTION_ERRORS,
    CRYPTO_INIT_TIMESTAMP,
    CRYPTO_MODE,
    CRYPTO_READY,
    KMS_DATA_KEYS,
    KMS_DATA_KEYS_MISSING,
    KMS_DATA_KEYS_UNUSABLE,
    CryptoMode,
)
from shared.check import Check, CheckError, CheckNotApplicable, CheckResult, run_checks
from shared.config.secret_file import SecretFile
from shared.smoke.http_client import TIMEOUT_SECONDS, HttpClient, HttpResponse, open_client

RECORD_ID: Final = "keypulse-smoke"
"""One record, overwritten each time, so smoke tests leave nothing that grows."""
_METRIC_NAMES: Final = (CRYPTO_MODE, CRYPTO_READY, CRYPTO_INIT_TIMESTAMP, CRYPTO_DECRYPTION_ERRORS)
_RECORD_PREFIX: Final = b"keypulse smoke test "
_MAX_TRIES: Final = 5
_CREDENTIALS_HINT: Final = "give a token that may use /v1/records: --token-file; or --records off, if it has none"
_ABSENT_STATUSES: Final = {404, 405, 501}
"""How a server answers a path that it does not have."""
_NO_RECORDS_STATUSES: Final = _ABSENT_STATUSES | {200, 201, 202, 400, 406, 409, 410, 415, 422}
"""How a server answers the PUT of a record that keeps none: a web application may answer any path."""
_ADMIN_PATH: Final = "/admin/crypto/keys"

RecordsMode = Literal["auto", "on", "off"]
"""Whether a record is written and read: where the backend keeps records, in any case, or never."""


async def check_backend(
    base_url: str,
    token: SecretFile | None = None,
    *,
    records: RecordsMode = "auto",
    timeout: float = TIMEOUT_SECONDS,
    random_hex: Callable[[int], str] = secrets.token_hex,
) -> list[CheckResult]:
    """Check one backend; `/v1/records` may need the token. Raises ValueError if `base_url` is invalid."""
    async with open_client(base_url, token, timeout) as server:

        async def answers() -> str:
            return f"crypto_mode {(await _read_health(server))['crypto_mode']}"

        async def ready() -> str:
            health = await _read_health(server)
            if health["crypto_ready"] is not True:
                raise CheckError(
                    f"crypto_ready is false: {health.get('reason') or 'it has no reason'}",
                    "see KMSCryptoNotReady in docs/KMS_OPERATIONS.md",
                )
            return "crypto_ready true"

        async def mode() -> str:
            health = await _read_health(server)
            if (found := health["crypto_mode"]) != CryptoMode.KMS:
                raise CheckError(
                    f"crypto_mode is {found}: {health.get('reason') or 'KMS does not wrap its data keys'}",
                    "see KMSCryptoModeNotKMS in docs/KMS_OPERATIONS.md",
                )
            return "crypto_mode kms"

        checks = [
            Check("backend answers", answers),
            Check("backend is ready", ready, depends_on="backend answers"),
            Check("backend uses KMS", mode, depends_on="backend answers"),
            Check("backend's metrics", partial(_check_metrics, server), depends_on="backend answers"),
            Check("backend's data keys", partial(_check_data_keys, server), depends_on="backend uses KMS"),
            Check("the admin API is closed", partial(_check_admin_api, server), depends_on="backend answers"),
        ]
        if records != "off":
            check = partial(_check_record, server, random_hex, is_required=records == "on")
            checks.append(Check("a record is written and read", check, depends_on="backend is ready"))
        return await run_checks(checks)


async def _read_health(server: HttpClient) -> dict[str, Any]:
    answer = await server.get("/healthz")
    if answer.status not in {200, 503}:
        raise _create_status_error("GET /healthz", answer, "give the address of a backend: --base-url")
    document = answer.parse_json("GET /healthz")
    if not isinstance(document, dict) or not {"crypto_mode", "crypto_ready"} <= document.keys():
        raise CheckError(
            "GET /healthz answers without crypto_mode and crypto_ready",
            "where the exporter reads another health document, give its configuration instead: --exporter-config",
        )
    return document


async def _check_metrics(server: HttpClient) -> str:
    answer = await server.get("/metrics")
    if answer.status != 200:
        raise _create_status_error("GET /metrics", answer, "let this machine read it; the exporter needs it, too")
    missing = [n for n in _METRIC_NAMES if not re.search(rb"^%s[ {]" % n.encode(), answer.body, re.MULTILINE)]
    if missing:
        raise CheckError(
            f"GET /metrics has no {', '.join(missing)}",
            "the exporter needs them: expose them, or update the backend",
        )
    return f"{len(_METRIC_NAMES)} families"


async def _check_data_keys(server: HttpClient) -> str:
    """Whether the keyring has an active data key, and all of them can be unwrapped, by the service's metrics."""
    body = (await server.get("/metrics")).body.decode(errors="replace")
    rows = re.findall(rf"^{KMS_DATA_KEYS}{{([^}}]*)}} ([0-9.e+]+)", body, re.MULTILINE)
    if not rows:
        raise CheckNotApplicable(f"the backend has no {KMS_DATA_KEYS} in its metrics")
    active = sum(float(value) for labels, value in rows if 'status="active"' in labels)
    if not active:
        raise CheckError(
            "no data key is active, so nothing can be encrypted", "see KMSCryptoNotReady in docs/KMS_OPERATIONS.md"
        )
    for family, what in ((KMS_DATA_KEYS_UNUSABLE, "cannot be unwrapped"), (KMS_DATA_KEYS_MISSING, "are missing")):
        count = sum(map(float, re.findall(rf"^{family}(?:{{[^}}]*}})? ([0-9.e+]+)", body, re.MULTILINE)))
        if count:
            raise CheckError(f"data keys that {what}: {count:g}", "see the backend's log and docs/KMS_OPERATIONS.md")
    return f"{active:g} active of {sum(float(value) for _, value in rows):g}"


async def _check_admin_api(server: HttpClient) -> str:
    """Whether the admin API refuses a request without a token."""
    answer = await replace(server, url=server.url.with_user(None), token=None).get(_ADMIN_PATH)
    if answer.status in {401, 403}:
        return f"GET {_ADMIN_PATH} without a token answers with HTTP {answer.status}"
    if answer.status in _ABSENT_STATUSES:
        raise CheckNotApplicable(f"the backend has no {_ADMIN_PATH}")
    if answer.status == 200:
        raise CheckError(
            f"GET {_ADMIN_PATH} answers without a token: anybody can rotate and abandon data keys",
            "set admin.token_file, and restart the backend",
        )
    raise _create_status_error(f"GET {_ADMIN_PATH} without a token", answer, "check the backend's log")


async def _check_record(server: HttpClient, random: Callable[[int], str], *, is_required: bool) -> str:
    """Write and read a record, and compare; try again if another smoke test wrote in between."""
    path = f"/v1/records/{RECORD_ID}"
    for _ in range(_MAX_TRIES):
        content = _RECORD_PREFIX + random(16).encode()
        answer = await server.put(path, content)
        if not is_required and answer.status in _NO_RECORDS_STATUSES:
            raise CheckNotApplicable("the backend keeps no records at /v1/records; --records on demands them")
        if answer.status != 204:
            raise _create_status_error("writing a record", answer, _choose_hint(answer))
        answer = await server.get(path)
        if answer.status != 200:
            raise _create_status_error("reading the record back", answer, _choose_hint(answer))
        if answer.body == content:
            return f"{len(content)} bytes as they were written"
        if not answer.body.startswith(_RECORD_PREFIX):
            break
    raise CheckError(
        "what was read is not what was written", "stop writing, and compare with a backup: data may be damaged"
    )


def _choose_hint(answer: HttpResponse) -> str:
    return _CREDENTIALS_HINT if answer.status in {401, 403} else "check the backend's log"


def _create_status_error(request: str, answer: HttpResponse, hint: str) -> CheckError:
    body = answer.body[:200].decode(errors="replace").strip()
    return CheckError(f"{request} answers with HTTP {answer.status}{': ' + body if body else ''}", hint)
