"""The kinds of channels: a new one is one file beside this one, and one member of the union."""

from typing import Annotated

from pydantic import Field

from services.relay.channels.apprise.channel import AppriseSettings
from services.relay.channels.email.channel import EmailSettings
from services.relay.channels.log import LogSettings
from services.relay.channels.pagerduty import PagerDutySettings
from services.relay.channels.slack.channel import SlackSettings
from services.relay.channels.webhook import WebhookSettings

AnyChannel = Annotated[
    SlackSettings | EmailSettings | PagerDutySettings | WebhookSettings | LogSettings | AppriseSettings,
    Field(discriminator="kind"),
]
"""The settings of a channel of any kind; `kind` selects the class."""
