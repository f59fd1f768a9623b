"""Refuses to serve the network without credentials: such a server starts on loopback only, and no reload opens it.

Credentials are a token in `auth`, or a web.yml with users or required client certificates.
"""

from pathlib import Path

from shared.config.errors import ConfigurationError
from shared.config.server_settings import ServerSettings
from shared.http.web_config_reload import WebConfigFile


def refuse_unprotected(
    settings: ServerSettings, config_file: Path | None, web_config_file: WebConfigFile | None
) -> None:
    """Refuse an address that the network reaches without credentials, and users named like tokens.

    From then on a web.yml that has to bring the credentials is not read without them.

    Args:
        settings: those to serve with.
        config_file: where they come from; None for the environment.
        web_config_file: the web.yml, if any.

    Raises:
        ConfigurationError: says what to configure.
    """
    if web_config_file:
        web_config_file.check_names(web_config_file.get_state(), settings.list_reserved_names())
    if not needs_web_credentials(settings):
        return
    if web_config_file:
        web_config_file.requires_credentials = True
        if web_config_file.get_state().config.requires_credentials:
            return
    error = (
        f"{config_file or 'environment'}: auth.admin_token_file: expected a file that holds a token, because "
        f"`listen` ({settings.listen}) can be reached from the network; or a --web.config.file with "
        "basic_auth_users or required client certificates"
    )
    raise ConfigurationError([error])


def needs_web_credentials(settings: ServerSettings) -> bool:
    """Whether the network reaches the server, and only a web.yml can ask for credentials."""
    return not settings.listen.is_loopback and not settings.auth.has_credentials
