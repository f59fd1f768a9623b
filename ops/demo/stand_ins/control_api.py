"""The API of the page and the tests: list messages, break providers and KMS, heal them."""

import asyncio
import json
from collections.abc import AsyncIterator

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ops.demo.stand_ins.change_feed import ChangeFeed
from ops.demo.stand_ins.kms_faults import FAULTS_BY_NAME, EmulatorError, KmsFaults
from ops.demo.stand_ins.mail_server import MailServer
from ops.demo.stand_ins.pagerduty import PagerDuty
from ops.demo.stand_ins.provider_faults import ProviderFault, ProviderFaults
from ops.demo.stand_ins.slack.workspace import Workspace
from shared.config.server_settings import Role
from shared.http.access import ProtectedRoute, RouteRequirements
from shared.http.limits import BodyTooLargeError, read_body

MAX_BYTES = 64 * 1024
HEARTBEAT_SECONDS = 15.0


class ControlApi:
    """Return the endpoints under `/api`."""

    def __init__(
        self,
        slack: Workspace,
        pagerduty: PagerDuty,
        mailbox: MailServer,
        faults: ProviderFaults,
        kms: KmsFaults,
        changes: ChangeFeed,
    ) -> None:
        self._slack = slack
        self._pagerduty = pagerduty
        self._mailbox = mailbox
        self._faults = faults
        self._kms = kms
        self._changes = changes

    def build_routes(self) -> list[ProtectedRoute]:
        """The endpoints."""
        reads = RouteRequirements(Role.VIEWER)
        return [
            ProtectedRoute("/api/state", self.get_state, reads),
            ProtectedRoute("/api/changes", self.stream_changes, reads),
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
        snapshot = {
            "version": self._changes.version,
            "slack": self._slack.get_state(),
            "people": self._slack.get_people(),
            "mailbox": self._mailbox.get_state(),
            "pagerduty": self._pagerduty.get_state(),
            "faults": self._faults.get_state(),
        }
        # Encoding hundreds of mails takes long enough to delay an SMTP client.
        encoded = await asyncio.to_thread(json.dumps, snapshot)
        return Response(encoded, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def stream_changes(self, _request: Request) -> Response:
        """Server-sent events: the version at once, and at each change."""
        return StreamingResponse(
            self._generate_events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _generate_events(self) -> AsyncIterator[str]:
        version = self._changes.version
        while not self._changes.is_stopped:
            yield f"data: {version}\n\n"
            version = await self._changes.wait_for_change(version, HEARTBEAT_SECONDS)

    async def add_fault(self, request: Request) -> Response:
        """Add a provider's fault: 201 with its id, 400 with what was expected."""
        try:
            fault = ProviderFault.model_validate_json(await read_body(request.stream(), MAX_BYTES))
        except ValidationError as error:
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
            return JSONResponse({"error": "; ".join(found)}, status_code=400)
        except BodyTooLargeError:
            return JSONResponse({"error": f"expected at most {MAX_BYTES} bytes"}, status_code=413)
        return JSONResponse({"id": self._faults.add(fault)}, status_code=201)

    async def clear_faults(self, _request: Request) -> Response:
        """Heals every provider."""
        self._faults.clear()
        return Response(status_code=204)

    async def get_kms_faults(self, _request: Request) -> Response:
        """Return the current fault of KMS."""
        try:
            return JSONResponse(await self._kms.list_active())
        except EmulatorError as error:
            return JSONResponse({"error": str(error)}, status_code=502)

    async def break_kms(self, request: Request) -> Response:
        """Break KMS with one of the named faults, after healing the others."""
        try:
            given = json.loads(await read_body(request.stream(), MAX_BYTES))
            name = given["fault"]
            await self._kms.break_kms(name)
        except (ValueError, KeyError, TypeError, BodyTooLargeError):
            expected = ", ".join(FAULTS_BY_NAME)
            return JSONResponse({"error": f"expected {{'fault': NAME}} with one of: {expected}"}, status_code=400)
        except EmulatorError as error:
            return JSONResponse({"error": str(error)}, status_code=502)
        self._changes.publish()
        return JSONResponse({"fault": name}, status_code=201)

    async def heal_kms(self, _request: Request) -> Response:
        """Heals KMS."""
        try:
            await self._kms.heal_kms()
        except EmulatorError as error:
            return JSONResponse({"error": str(error)}, status_code=502)
        self._changes.publish()
        return Response(status_code=204)
