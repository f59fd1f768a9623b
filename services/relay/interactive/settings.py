"""The settings under `interactive`: buttons in Slack are off without an app-level token, silences without a name."""

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from services.relay.interactive.silence_permission import SilenceRules
from shared.config.file_checks import FileCheck, FileCheckError, create_secret_check
from shared.config.secret_file import SecretFile
from shared.config.settings import Duration, FilePath, Section
from shared.config.url import ProviderUrl
from shared.net.egress import EgressSettings


def _check_token(secret: str) -> None:
    if not secret.startswith("xapp-"):
        raise FileCheckError("holds no app-level token", "expected xapp-…, with the scope connections:write")


_EXPECTED_TOKEN: Final = "expected a file with the app-level token, xapp-…, on its first line"  # noqa: S105  # no token
AppTokenPath = Annotated[FilePath, FileCheck(create_secret_check(SecretFile, _EXPECTED_TOKEN, _check_token))]
"""A file with an app-level token."""
UserId = Annotated[str, StringConstraints(pattern="^[UW][A-Z0-9]{2,}$")]
"""Of a person in Slack, such as U012ABCDEF."""
GroupId = Annotated[str, StringConstraints(pattern="^S[A-Z0-9]{2,}$")]
"""Of a user group in Slack, such as S012ABCDEF."""


class SilenceSettings(Section):
    """Who may silence an incident by its button; nobody without an entry."""

    allow_users: tuple[UserId, ...] = ()
    allow_groups: tuple[GroupId, ...] = ()
    max: Annotated[Duration, Field(ge=60, le=7 * 86400)] = 4 * 3600.0
    """How long such a silence lasts."""


class InteractiveSettings(EgressSettings):
    """Buttons in Slack."""

    app_token_file: AppTokenPath | None = None
    """Contains the app-level token, xapp-…, with the scope connections:write."""
    allow_remote_insecure: bool = False
    """Lets plaintext leave this machine: to a stand-in among containers."""
    api_url: ProviderUrl = "https://slack.com/api/"
    silence: SilenceSettings = SilenceSettings()

    @property
    def silence_rules(self) -> SilenceRules:
        """Who may silence, and for how long."""
        silence = self.silence
        return SilenceRules(frozenset(silence.allow_users), silence.allow_groups, silence.max)
