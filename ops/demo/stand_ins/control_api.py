"""The API of the page and the tests: list messages, break providers and KMS, heal them.

KMS is broken in the ways that happen, by their names: by the emulator's API, or by an administrator of OpenBao.
"""

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import aiohttp
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ops.demo.openbao import OpenBaoError
from ops.demo.stand_ins.mail_server import MailServer
from ops.demo.stand_ins.pagerduty import PagerDuty
from ops.demo.stand_ins.provider_faults import ChangeFeed, ProviderFault, ProviderFaults
from ops.demo.stand_ins.slack.workspace import Workspace
from ops.demo.stand_ins.transit_faults import TransitFaults
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.limits import BodyTooLargeError, read_body

MAX_BYTES = 64 * 1024
Json = dict[str, Any]
CALL_TIMEOUT = aiohttp.ClientTimeout(total=5)

_CRYPTO = ("Encrypt", "Decrypt")


def _build_crypto_faults(**fault: Any) -> tuple[Json, ...]:
    return tuple({**fault, "operation": operation} for operation in _CRYPTO)


FAULTS_BY_NAME: Final[dict[str, tuple[Json, ...]]] = {
    "permission_denied": _build_crypto_faults(kind="denied"),
    "unavailable": ({"kind": "status", "status": "UNAVAILABLE", "message": "The service is currently unavailable."},),
    "latency": _build_crypto_faults(kind="latency", seconds=2.0),
    "stall": _build_crypto_faults(kind="stall"),
    "disabled": _build_crypto_faults(
        kind="status",
        status="FAILED_PRECONDITION",
        message="The key version is not enabled, current state is: DISABLED.",
    ),
    "corrupt_crc": _build_crypto_faults(kind="corrupt_crc"),
}


FAULT_LABELS: Final = {
    "permission_denied": "Permission denied",
    "disabled": "Key version disabled",
    "unavailable": "Service unavailable",
    "latency": "2 s slower",
    "stall": "No answer at all",
    "corrupt_crc": "Corrupted checksums",
}
"""What the page calls each fault."""


class EmulatorError(Exception):
    """The emulator does not answer; the message is one sentence with the next step."""


KMS_ERRORS: Final = (EmulatorError, OpenBaoError)


class KmsFaults:
    """The emulator's faults, over HTTP.

    Args:
        url: of its faults API, such as `http://127.0.0.1:9011`; None without an emulator.
    """

    labels: Final = FAULT_LABELS

    def __init__(self, url: str | None) -> None:
        self._url = url

    async def list_active(self) -> Json:
        """`{"broken": NAME | "other" | None, "faults": […]}`: the current faults, whoever added them."""
        answer = await self._call("GET")
        faults = answer["faults"]
        if not faults:
            return {"broken": None, "faults": []}
        return {
            "broken": next((name for name, parts in FAULTS_BY_NAME.items() if _are_equal(parts, faults)), "other"),
            "faults": faults,
        }

    async def break_kms(self, name: str) -> None:
        """Break KMS with the named fault alone. Raises KeyError for an unknown name, EmulatorError."""
        parts = FAULTS_BY_NAME[name]
        await self._call("DELETE")
        for part in parts:
            await self._call("POST", part)

    async def heal_kms(self) -> None:
        await self._call("DELETE")

    async def _call(self, method: str, fault: Json | None = None) -> Json:
        if self._url is None:
            raise EmulatorError("no KMS emulator is connected; start the stand-ins with --emulator-faults URL")
        try:
            async with (
                aiohttp.ClientSession(timeout=CALL_TIMEOUT) as session,
                session.request(method, f"{self._url.rstrip('/')}/faults", json=fault) as response,
            ):
                if response.status >= 300:
                    raise EmulatorError(f"the KMS emulator at {self._url} answered {response.status}; see its log")
                return await response.json() if response.status != 204 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise EmulatorError(f"the KMS emulator at {self._url} does not answer; start it, or see its log") from None


def _are_equal(parts: tuple[Json, ...], faults: list[Json]) -> bool:
    """Whether the faults in force are exactly these."""
    return len(parts) == len(faults) and all(any(part.items() <= fault.items() for fault in faults) for part in parts)


@dataclass(frozen=True, slots=True)
class Providers:
    """What the page and the API show, and break."""

    slack: Workspace
    pagerduty: PagerDuty
    mailbox: MailServer
    faults: ProviderFaults
    kms: KmsFaults | TransitFaults
    changes: ChangeFeed


class ControlApi:
    def __init__(self, providers: Providers) -> None:
        self._providers = providers

    def build_routes(self) -> list[ProtectedRoute]:
        reads = RouteRequirements(Role.VIEWER)
        return [
            ProtectedRoute("/api/state", self.get_state, reads),
            ProtectedRoute("/api/faults", self.add_fault, RouteRequirements(Role.ADMIN, action="add fault"), ["POST"]),
            ProtectedRoute(
                "/api/faults", self.clear_faults, RouteRequirements(Role.ADMIN, action="clear faults"), ["DELETE"]
            ),
            ProtectedRoute("/api/kms", self.get_kms_faults, reads),
            ProtectedRoute(
                "/api/kms/break", self.break_kms, RouteRequirements(Role.ADMIN, action="break KMS"), ["POST"]
            ),
            ProtectedRoute("/api/kms/heal", self.heal_kms, RouteRequirements(Role.ADMIN, action="heal KMS"), ["POST"]),
        ]

    async def get_state(self, _request: Request) -> Response:
        """Everything that arrived, and the providers' faults in force."""
        providers = self._providers
        snapshot = {
            "version": providers.changes.version,
            "slack": providers.slack.get_state(),
            "people": [asdict(person) for person in providers.slack.people.values()],
            "mailbox": providers.mailbox.get_state(),
            "pagerduty": providers.pagerduty.get_state(),
            "faults": providers.faults.get_state(),
        }
        # Encoding hundreds of mails takes long enough to delay an SMTP client.
        encoded = await asyncio.to_thread(json.dumps, snapshot)
        return Response(encoded, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def add_fault(self, request: Request) -> Response:
        """Add a provider's fault: 201 with its id, 400 with what was expected."""
        try:
            fault = ProviderFault.model_validate_json(await read_body(request.stream(), MAX_BYTES))
        except ValidationError as error:
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
            return JSONResponse({"error": "; ".join(found)}, status_code=400)
        except BodyTooLargeError:
            return JSONResponse({"error": f"expected at most {MAX_BYTES} bytes"}, status_code=413)
        return JSONResponse({"id": self._providers.faults.add(fault)}, status_code=201)

    async def clear_faults(self, _request: Request) -> Response:
        self._providers.faults.clear()
        return Response(status_code=204)

    async def get_kms_faults(self, _request: Request) -> Response:
        """Return the current fault of KMS."""
        try:
            return JSONResponse(await self._providers.kms.list_active())
        except KMS_ERRORS as error:
            return JSONResponse({"error": str(error)}, status_code=502)

    async def break_kms(self, request: Request) -> Response:
        """Break KMS with one of the named faults, after healing the others."""
        try:
            given = json.loads(await read_body(request.stream(), MAX_BYTES))
            name = given["fault"]
            await self._providers.kms.break_kms(name)
        except (ValueError, KeyError, TypeError, BodyTooLargeError):
            expected = ", ".join(self._providers.kms.labels)
            return JSONResponse({"error": f"expected {{'fault': NAME}} with one of: {expected}"}, status_code=400)
        except KMS_ERRORS as error:
            return JSONResponse({"error": str(error)}, status_code=502)
        self._providers.changes.publish()
        return JSONResponse({"fault": name}, status_code=201)

    async def heal_kms(self, _request: Request) -> Response:
        try:
            await self._providers.kms.heal_kms()
        except KMS_ERRORS as error:
            return JSONResponse({"error": str(error)}, status_code=502)
        self._providers.changes.publish()
        return Response(status_code=204)
