"""`init`: prints a first configuration of the relay, with a channel for each that is asked for."""

from pathlib import Path
from typing import Final

import click

from services.relay.config import RelaySettings
from shared.process.command_line import print_configuration_or_exit, render_configuration

_INIT_EXAMPLES: Final = """\b
Examples:
  keypulse-relay init --slack webhook --alertmanager http://127.0.0.1:9093 > relay.yml
  keypulse-relay init --slack '#security-ops' > relay.yml
  keypulse-relay init --slack '#security-ops' --email secops@example.org --pagerduty > relay.yml"""


@click.command("init", short_help="Print a first configuration.", epilog=_INIT_EXAMPLES)
@click.option(
    "--slack",
    metavar="CHANNEL|webhook",
    help="Deliver to this channel of Slack, its name with # or its ID, by a bot; or by an incoming webhook.",
)
@click.option("--email", metavar="ADDRESS", multiple=True, help="Deliver to this address; may be repeated.")
@click.option("--pagerduty", is_flag=True, help="Deliver to a service of PagerDuty.")
@click.option("--webhook", metavar="URL", help="Post to this address, as JSON.")
@click.option("--alertmanager", metavar="URL", multiple=True, help="An Alertmanager that sends; may be repeated.")
@click.option("--prometheus", metavar="URL", help="The Prometheus of the values and charts in messages.")
def init_command(
    slack: str | None,
    email: tuple[str, ...],
    webhook: str | None,
    alertmanager: tuple[str, ...],
    prometheus: str | None,
    *,
    pagerduty: bool,
) -> None:
    """Print a first configuration, with comments and a channel for each option."""
    chosen = {"slack": slack, "email": email, "pagerduty": pagerduty, "webhook": webhook}
    text = render_configuration(
        Path(__file__).with_name("first_configuration.yml.j2"),
        channels=[name for name, given in chosen.items() if given] or ["log"],
        slack=slack,
        addresses=email,
        pagerduty=pagerduty,
        webhook=webhook,
        alertmanagers=alertmanager,
        prometheus=prometheus,
    )
    print_configuration_or_exit(RelaySettings, text)
