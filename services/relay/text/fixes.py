"""What to do: the commands that fix the alerts of a message, ready to paste."""

from itertools import islice
from typing import Final

from services.relay.model import Message, Status
from services.relay.text.title import is_resolved
from shared.kms.alert_fixes import list_fixes as list_alert_fixes
from shared.kms.fixes import Fix

MAX_FIXES: Final = 6
"""Commands of one message."""


def list_fixes(message: Message) -> list[Fix]:
    """The commands that fix the alerts that fire, each once; at most `MAX_FIXES`, none once the group is resolved."""
    if is_resolved(message.event):
        return []
    firing = (alert for alert in message.event.alerts if alert.status is Status.FIRING)
    commands = dict.fromkeys(fix for alert in firing for fix in list_alert_fixes(alert.annotations, alert.labels))
    return list(islice(commands, MAX_FIXES))
