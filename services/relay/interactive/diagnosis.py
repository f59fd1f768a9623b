"""Checks of buttons in Slack: the app-level token, and the scopes that silences need. No connection is opened."""

from collections.abc import Sequence
from typing import Final

from services.relay.interactive.web_api import SlackCallError, SlackWebApi
from services.relay.slack_codes import SLACK_CODES
from shared.check import CheckError

_HINTS: Final = {
    "invalid_auth": "copy the app-level token (xapp-…) into `app_token_file`",
    "not_allowed_token_type": "copy the app-level token (xapp-…) into `app_token_file`",
    "missing_scope": "give the app-level token the scope connections:write",
}


async def check_app_token(api: SlackWebApi) -> str:
    """Check that the token may open connections, and that Socket Mode is on. Raises CheckError."""
    try:
        await api.call("apps.connections.open")
    except SlackCallError as error:
        hint = _HINTS.get(error.code, "see whether Socket Mode is on in the app's settings")
        raise CheckError(
            _explain(error), hint if error.code else "allow https and wss to slack.com, or set `proxy`"
        ) from None
    return "the app-level token opens connections"


async def check_silence_scopes(api: SlackWebApi, scopes: Sequence[str]) -> str:
    """Check that a bot has the scopes to see who may silence. Raises CheckError."""
    try:
        await api.call("auth.test")
    except SlackCallError as error:
        raise CheckError(_explain(error), "correct the channel's `token_file`") from None
    missing = " and ".join(scope for scope in scopes if scope not in (api.granted_scopes or ()))
    if api.granted_scopes is not None and missing:
        raise CheckError(
            f"the bot lacks {missing}", f"add {missing} to the app's bot scopes, and install the app again"
        )
    return f"the bot has {' and '.join(scopes)}"


def _explain(error: SlackCallError) -> str:
    code = SLACK_CODES.get(error.code)
    return f"{error}: {code.meaning}" if code else str(error)
