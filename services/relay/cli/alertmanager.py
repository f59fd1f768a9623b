"""`alertmanager --merge`: prints the file of an Alertmanager that exists with keypulse's routing in it."""

import sys
from functools import partial
from pathlib import Path
from typing import Final

import click

from services.relay.alertmanager_file.merge import CollisionError, Destination, merge
from services.relay.cli.command_context import add_config_option
from services.relay.config import RelaySettings
from shared.config.errors import ConfigurationError
from shared.config.settings import Address
from shared.config.url import check_http_url
from shared.process.command_line import load_settings_or_exit, parse_option_or_exit

_EXAMPLES: Final = """\b
Examples:
  keypulse-relay --config relay.yml alertmanager --merge /etc/alertmanager/alertmanager.yml > merged.yml
  keypulse-relay alertmanager --merge alertmanager.yml --url http://relay:9912/alerts --token-file /run/secrets/relay_token
  kubectl get secret NAME -o jsonpath='{.data.alertmanager\\.yaml}' | base64 -d |
    keypulse-relay --config relay.yml alertmanager --merge - --direct on-call"""  # noqa: E501


@click.command("alertmanager", short_help="Merge keypulse's routing into an Alertmanager file.", epilog=_EXAMPLES)
@click.option("--merge", "file", required=True, metavar="FILE", help="Alertmanager's file; - is standard input.")
@click.option("--url", help="Where Alertmanager reaches the relay, with /alerts; by default as the relay listens.")
@click.option("--token-file", help="The relay's token as Alertmanager opens it; auth.bearer_token_file by default.")
@click.option("--direct", help="The receiver in FILE for the relay's own alerts; the root route's by default.")
@add_config_option
def command(config: Path | None, file: str, url: str | None, token_file: str | None, direct: str | None) -> None:
    """Print FILE with keypulse's routes, receivers and inhibitions in it. FILE itself does not change.

    Where something collides, print nothing but what does, and exit with 1.
    """
    if url is None or token_file is None:
        settings = load_settings_or_exit(RelaySettings, config)
        url = url or parse_option_or_exit("--url", _build_url, settings.listen)
        token_file = token_file or str(settings.auth.bearer_token_file)
    destination = Destination(parse_option_or_exit("--url", check_http_url, url), token_file, direct)
    try:
        merged = parse_option_or_exit("--merge", partial(_merge_file, destination), file)
    except CollisionError as error:
        for line in error.lines:
            click.echo(f"{file}: {line}", err=True)
        sys.exit(1)
    click.echo(merged.encode(), nl=False)


def _build_url(listen: Address) -> str:
    if listen.host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound
        raise ValueError("expected the relay's address as Alertmanager reaches it, because it listens on all")
    return f"http://{listen}/alerts"


def _merge_file(destination: Destination, file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return merge(content.decode(), destination)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("expected UTF-8") from None
    except ConfigurationError as error:
        raise ValueError(error.lines[0]) from None
