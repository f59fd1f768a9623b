"""`init`: prints a first configuration of the relay, with a channel for each that is asked for."""

import json
import re
from typing import Final

import click

from services.relay.config import RelaySettings
from shared.process.command_line import print_configuration_or_exit

_INIT_EXAMPLES: Final = """\b
Examples:
  keypulse-relay init --slack webhook --alertmanager http://127.0.0.1:9093 > relay.yml
  keypulse-relay init --slack '#security-ops' > relay.yml
  keypulse-relay init --slack '#security-ops' --email secops@example.org --pagerduty > relay.yml"""
_HEAD: Final = """\
# The relay's configuration; docs/configuration/relay.md explains every key. Relative paths start at its folder.
# Try it with: keypulse-relay doctor --config relay.yml

# The outbox: a file, or postgresql://USER@HOST/NAME for several relays.
database: sqlite:///relay.db

# The token that Alertmanager sends. Make it with: (umask 077; openssl rand -hex 32 > relay_token)
auth: {bearer_token_file: relay_token}

# Who gets an alert that no route below matches.
"""
_ROUTES: Final = """
# By Alertmanager's receiver and labels; the first that matches counts. All alerts go to `default_channels` without any.
# routes:
#   - {receiver: kms-critical, channels: [CHANNELS]}

# The alert of keypulse's rules that always fires: a heartbeat, which is no message. Its absence is one.
watchdogs:
  - {matchers: ['alertname="Watchdog"'], expect_every: 5m, channels: [CHANNELS]}

# Links in each message, with the alert's labels. Remove the `#`, and set your own addresses:
# links:
#   runbook: https://HOST/KMS_OPERATIONS.md#{alertname_lower}
#   dashboard: https://HOST/d/kms-crypto-health?var-env={env}&var-service={service}&from={from_ms}&to={to_ms}

# The first diagnosis steps of its alert in each message; what its expression gives now, and a chart:
PROMETHEUS

# Alertmanager's address, so that alerts which end while they are silenced are resolved here, too:
ALERTMANAGER

# Buttons in Slack, with an app-level token (xapp-…), which docs/SLACK.md explains:
# interactive: {app_token_file: slack_app_token}

# Whom a critical message says to call:
# contacts: {"security on call": "TELEPHONE"}

channels:
"""
_SLACK: Final = """\
  # A Slack app with a bot that is a member of the channel, and has the scopes chat:write, channels:read and
  # channels:history. Put its token (xoxb-…) into the file: (umask 077; cat > slack_token)
  slack: {{kind: slack, channel: {channel}, token_file: slack_token}}
"""
_WEBHOOK: Final = "webhook"
_SLACK_WEBHOOK: Final = """\
  # An incoming webhook of Slack. Put its URL into the file: (umask 077; cat > slack_webhook). Each message stands by
  # itself; for threads use a bot: keypulse-relay init --slack CHANNEL
  slack: {kind: slack, webhook_url_file: slack_webhook}
"""
_EMAIL: Final = """\
  # A mail server with STARTTLS on port 587. It may need `username` and `password_file`.
  email: {{kind: email, host: localhost, from: keypulse@localhost.localdomain, to: [{addresses}]}}
"""
_PAGERDUTY: Final = """\
  # The integration key of an integration `Events API V2`, 32 characters: (umask 077; cat > pagerduty_key)
  pagerduty: {kind: pagerduty, routing_key_file: pagerduty_key}
"""
_LOG: Final = """\
  # Writes each message to the relay's log. Add others with: keypulse-relay init --slack CHANNEL --email ADDRESS
  log: {kind: log}
"""


@click.command("init", short_help="Print a first configuration.", epilog=_INIT_EXAMPLES)
@click.option(
    "--slack",
    metavar="CHANNEL|webhook",
    help="Deliver to this channel of Slack, its name with # or its ID, by a bot; or by an incoming webhook.",
)
@click.option("--email", metavar="ADDRESS", multiple=True, help="Deliver to this address; may be repeated.")
@click.option("--pagerduty", is_flag=True, help="Deliver to a service of PagerDuty.")
@click.option("--alertmanager", metavar="URL", multiple=True, help="An Alertmanager that sends; may be repeated.")
@click.option("--prometheus", metavar="URL", help="The Prometheus of the values and charts in messages.")
def init_command(
    slack: str | None, email: tuple[str, ...], alertmanager: tuple[str, ...], prometheus: str | None, *, pagerduty: bool
) -> None:
    """Print a first configuration, with comments and a channel for each option."""
    channels = {
        "slack": _SLACK_WEBHOOK if slack == _WEBHOOK else slack and _SLACK.format(channel=_quote(slack)),
        "email": email and _EMAIL.format(addresses=", ".join(_quote(address) for address in email)),
        "pagerduty": pagerduty and _PAGERDUTY,
    }
    chosen = {name: text for name, text in channels.items() if text} or {"log": _LOG}
    names = ", ".join(chosen)
    urls = ", ".join(map(_quote, alertmanager or ["http://127.0.0.1:9093"]))
    url = _quote(prometheus or "http://127.0.0.1:9090")
    values = {
        "CHANNELS": names,
        "ALERTMANAGER": f"{'' if alertmanager else '# '}alertmanager: {{urls: [{urls}]}}",
        "PROMETHEUS": f"messages: {{prometheus_url: {url}}}  # runbook: KMS_OPERATIONS.md"
        if prometheus
        else f"# messages: {{runbook: KMS_OPERATIONS.md, prometheus_url: {url}}}",
    }
    routes = re.sub("|".join(values), lambda found: values[found[0]], _ROUTES)
    text = f"{_HEAD}default_channels: [{names}]\n{routes}{''.join(chosen.values())}"
    print_configuration_or_exit(RelaySettings, text)


def _quote(text: str) -> str:
    """In YAML's double quotes, which JSON's are, too."""
    return json.dumps(text, ensure_ascii=False)
