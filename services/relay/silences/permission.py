"""Who may silence: those that the configuration names, by themselves or by their group, and no guest."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from services.relay.acknowledgement.socket_mode import SlackWebApi
from services.relay.text import clean_line, truncate


@dataclass(frozen=True, slots=True)
class SilenceRules:
    """What the configuration says about silences by button."""

    allow_users: Collection[str]
    """IDs of users."""
    allow_groups: Collection[str]
    """IDs of user groups."""
    max_seconds: float
    """How long a silence lasts."""

    @property
    def is_enabled(self) -> bool:
        """Whether anybody may silence."""
        return bool(self.allow_users or self.allow_groups)


class NotAllowedError(Exception):
    """The person may not silence; the message is a sentence for the person."""


async def check_permission(bot: SlackWebApi, user_id: str, rules: SilenceRules) -> str:
    """The name of a person who may silence. Raises NotAllowedError, SlackCallError where Slack cannot say."""
    user: Any = (await bot.call("users.info", user=user_id)).get("user")
    if not isinstance(user, dict) or user.get("id") != user_id or user.get("team_id") != await bot.read_team():
        raise NotAllowedError("Only members of this workspace can silence.")
    if any(user.get(key) for key in ("is_restricted", "is_ultra_restricted", "deleted", "is_bot")):
        raise NotAllowedError("Guests cannot silence.")
    if user_id not in rules.allow_users and not await _is_in_group(bot, user_id, rules.allow_groups):
        raise NotAllowedError("You are not among those who may silence: `interactive.silence` of the relay names them.")
    return truncate(clean_line(str(user.get("real_name") or user.get("name") or user_id)), 80)


async def _is_in_group(bot: SlackWebApi, user_id: str, groups: Collection[str]) -> bool:
    for group in groups:
        members = (await bot.call("usergroups.users.list", usergroup=group)).get("users")
        if isinstance(members, list) and user_id in members:
            return True
    return False
