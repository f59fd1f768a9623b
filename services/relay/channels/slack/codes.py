"""What Slack's codes mean, for a person who sets a channel up.

https://docs.slack.dev/reference/methods/auth.test, "Errors", and of incoming webhooks
https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors
"""

from typing import Final, NamedTuple

_REINSTALL: Final = "install the app again, and copy its new token"
_ASK: Final = "ask an administrator of the workspace"
_COPY_URL: Final = "copy the whole URL of the webhook, or make a new one"


class SlackCode(NamedTuple):
    """One of Slack's codes."""

    meaning: str
    action: str = ""
    """What to do; empty where that depends on the kind of token."""


SLACK_CODES: Final = {
    "invalid_auth": SlackCode("Slack does not know the token"),
    "not_authed": SlackCode("Slack got no token"),
    "not_allowed_token_type": SlackCode("it is a token of another kind"),
    "account_inactive": SlackCode("the app was removed from the workspace", _REINSTALL),
    "token_revoked": SlackCode("the token was revoked", _REINSTALL),
    "token_expired": SlackCode("the token has expired", "turn token rotation off, and copy a new token"),
    "no_permission": SlackCode("the token may not do this", _REINSTALL),
    "access_denied": SlackCode("the token may not do this", _ASK),
    "org_login_required": SlackCode("the workspace is moved to an organisation", "try again when that is done"),
    "ekm_access_denied": SlackCode("an administrator has suspended the access to messages", _ASK),
    "enterprise_is_restricted": SlackCode("the organisation does not allow it", _ASK),
    "team_access_not_granted": SlackCode("the app is not approved for this workspace", _ASK),
    "two_factor_setup_required": SlackCode("the user of the token has no second factor", "set one up"),
    "channel_not_found": SlackCode("the channel does not exist, or is private", "correct it, or invite the bot"),
    "invalid_token": SlackCode("the last part of the URL is wrong", _COPY_URL),
    "no_service": SlackCode("the webhook was removed or disabled, or its URL is cut", _COPY_URL),
    "no_service_id": SlackCode("the URL is cut: its part B… is missing", _COPY_URL),
    "no_active_hooks": SlackCode("the webhook is disabled", _COPY_URL),
    "no_team": SlackCode("Slack does not know the workspace in the URL, its part T…", _COPY_URL),
    "team_disabled": SlackCode("the workspace is disabled", _ASK),
    "channel_is_archived": SlackCode("the webhook's channel is archived", "unarchive it, or make a new webhook"),
    "user_not_found": SlackCode("the person to whom the webhook writes does not exist", "make a new webhook"),
    "action_prohibited": SlackCode("an administrator does not allow it", _ASK),
    "posting_to_general_channel_denied": SlackCode("not everybody may post to #general", "make one of another channel"),
}
