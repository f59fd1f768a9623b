"""What the page and the tests ask of the stand-ins: what arrived, what is broken, break it, heal it."""

import asyncio
import json
from collections.abc import AsyncIterator

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ops.demo.stand_ins import body
from ops.demo.stand_ins.faults import Fault, Faults
from ops.demo.stand_ins.kms import BREAKS, EmulatorError, KmsFaults
from ops.demo.stand_ins.live import Changes
from ops.demo.stand_ins.mailbox import Mailbox
from ops.demo.stand_ins.pagerduty import PagerDuty
from ops.demo.stand_ins.slack import Slack
from shared.guard import GuardedRoute, Requires
from shared.settings import Role

MAX_BYTES = 64 * 1024
HEARTBEAT_SECONDS = 15.0


class Api:
    """The endpoints under `/api`; who may call them is the guard's business."""

    def __init__(
        self, slack: Slack, pagerduty: PagerDuty, mailbox: Mailbox, faults: Faults, kms: KmsFaults, changes: Changes
    ) -> None:
        self._slack = slack
        self._pagerduty = pagerduty
        self._mailbox = mailbox
        self._faults = faults
        self._kms = kms
        self._changes = changes

    def routes(self) -> list[GuardedRoute]:
        """The endpoints."""
        reads = Requires(Role.VIEWER)
        return [
            GuardedRoute("/api/state", self.state, reads),
            GuardedRoute("/api/changes", self.changes, reads),
            GuardedRoute("/api/faults", self.add_fault, Requires(Role.ADMIN, action="add fault"), ["POST"]),
            GuardedRoute("/api/faults", self.clear_faults, Requires(Role.ADMIN, action="clear faults"), ["DELETE"]),
            GuardedRoute("/api/kms", self.kms, reads),
            GuardedRoute("/api/kms/break", self.kms_break, Requires(Role.ADMIN, action="break KMS"), ["POST"]),
            GuardedRoute("/api/kms/heal", self.kms_heal, Requires(Role.ADMIN, action="heal KMS"), ["POST"]),
        ]

    async def state(self, _request: Request) -> Response:
        """Everything that arrived, and the providers' faults in force."""
        snapshot = {
            "version": self._changes.version,
            "slack": self._slack.state(),
            "mailbox": self._mailbox.state(),
            "pagerduty": self._pagerduty.state(),
            "faults": self._faults.state(),
        }
        # Encoding hundreds of mails takes long enough to hold up an SMTP client.
        encoded = await asyncio.to_thread(json.dumps, snapshot)
        return Response(encoded, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def changes(self, _request: Request) -> Response:
        """Server-sent events: the version at once, and at each change."""
        return StreamingResponse(self._events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _events(self) -> AsyncIterator[str]:
        version = self._changes.version
        while not self._changes.stopped:
            yield f"data: {version}\n\n"
            version = await self._changes.after(version, HEARTBEAT_SECONDS)

    async def add_fault(self, request: Request) -> Response:
        """Puts a provider's fault in force: 201 with its id, 400 with what was expected."""
        try:
            fault = Fault.model_validate_json(await body.read(request, MAX_BYTES))
        except ValidationError as error:
            found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
            return JSONResponse({"error": "; ".join(found)}, status_code=400)
        except body.TooLargeError:
            return JSONResponse({"error": f"expected at most {MAX_BYTES} bytes"}, status_code=413)
        return JSONResponse({"id": self._faults.add(fault)}, status_code=201)

    async def clear_faults(self, _request: Request) -> Response:
        """Heals every provider."""
        self._faults.clear()
        return Response(status_code=204)

    async def kms(self, _request: Request) -> Response:
        """What is broken at KMS right now."""
        try:
            return JSONResponse(await self._kms.active())
        except EmulatorError as error:
            return JSONResponse({"error": str(error)}, status_code=502)

    async def kms_break(self, request: Request) -> Response:
        """Breaks KMS in one of the known ways; what was broken before is healed first."""
        try:
            given = json.loads(await body.read(request, MAX_BYTES))
            name = given["fault"]
            await self._kms.break_(name)
        except (ValueError, KeyError, TypeError, body.TooLargeError):
            expected = ", ".join(BREAKS)
            return JSONResponse({"error": f"expected {{'fault': NAME}} with one of: {expected}"}, status_code=400)
        except EmulatorError as error:
            return JSONResponse({"error": str(error)}, status_code=502)
        self._changes.happened()
        return JSONResponse({"fault": name}, status_code=201)

    async def kms_heal(self, _request: Request) -> Response:
        """Heals KMS."""
        try:
            await self._kms.heal()
        except EmulatorError as error:
            return JSONResponse({"error": str(error)}, status_code=502)
        self._changes.happened()
        return Response(status_code=204)
