"""The few calls of Slack's Web API that presses need, each within a time limit.

slack_sdk stays with the channel: its clients ignore NO_PROXY, and its client of Socket Mode tries a refused address for
ever, and closes a connection before the next one is open.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json

from services.relay.http_session import HttpSession, translate_connection_errors
from services.relay.send_error import SendError
from shared.config.secret_file import SecretFile, SecretUnreadableError
from shared.net.egress import EgressSettings

CALL_TIMEOUT: Final = 10.0


class SlackCallError(Exception):
    """A call failed; the text is a sentence without secrets.

    Args:
        text: what went wrong.
        code: Slack's name of the error; empty where Slack did not answer.
        retry_after: seconds that Slack asked to wait.
    """

    def __init__(self, text: str, *, code: str = "", retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after


class SlackWebApi:
    """One token's access to the Web API.

    Args:
        api_url: its base, which ends with a slash.
        token_file: with the token.
        egress: how it is reached.
    """

    def __init__(self, api_url: str, token_file: Path, egress: EgressSettings) -> None:
        self.api_url = api_url.rstrip("/") + "/"
        self.session = HttpSession("Slack", egress=egress)
        self.granted_scopes: frozenset[str] | None = None
        """The token's, by the last answer."""
        self._token = SecretFile(token_file)
        self._team_id: str | None = None

    async def call(self, method: str, **arguments: str) -> Mapping[str, Any]:
        """The answer to a call. Raises SlackCallError."""
        try:
            headers = {"Authorization": f"Bearer {self._token.read_value()}"}
            with translate_connection_errors("Slack"):
                async with (
                    asyncio.timeout(CALL_TIMEOUT),
                    self.session.open().post(self.api_url + method, data=arguments, headers=headers) as response,
                ):
                    body, status = await response.read(), response.status
                    retry_after, scopes = (
                        response.headers.get("Retry-After", ""),
                        response.headers.get("X-OAuth-Scopes"),
                    )
        except TimeoutError:
            raise SlackCallError(f"Slack: no answer within {CALL_TIMEOUT:g} s") from None
        except (SendError, SecretUnreadableError) as error:
            raise SlackCallError(str(error)) from None
        if scopes is not None:
            self.granted_scopes = frozenset(filter(None, (each.strip() for each in scopes.split(","))))
        if status == 429:
            raise SlackCallError("Slack asks to wait", code="ratelimited", retry_after=_parse_seconds(retry_after))
        return _check_answer(status, body)

    async def read_team(self) -> str:
        """The ID of the token's workspace; read once. Raises SlackCallError."""
        if self._team_id is None:
            self._team_id = str((await self.call("auth.test")).get("team_id") or "") or None
        return self._team_id or ""

    async def close(self) -> None:
        """Closes its connections."""
        await self.session.close()


def _check_answer(status: int, body: bytes) -> Mapping[str, Any]:
    try:
        answer = from_json(body) if status == 200 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SlackCallError(f"Slack answered HTTP {status}" if status != 200 else "Slack's answer is not JSON")
    if answer.get("ok") is not True:
        code = _clean_code(answer.get("error"))
        scope = _clean_code(answer.get("needed")) if code == "missing_scope" else ""
        missing = f"; the token needs {scope}" if scope else ""
        raise SlackCallError(f"Slack answered {code or 'an unknown error'}{missing}", code=code)
    return answer


def _clean_code(value: object) -> str:
    """Slack's name of an error or a scope; empty for whatever else may be there."""
    return value if isinstance(value, str) and len(value) <= 60 and value.replace(":", "_").isidentifier() else ""


def _parse_seconds(text: str) -> float:
    return min(float(text), 3600.0) if text.isdecimal() else 30.0
