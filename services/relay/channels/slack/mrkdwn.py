"""Text of strangers → text that Slack shows as it is."""

import re


def escape(text: str, limit: int) -> str:
    """The text with Slack's three control characters as entities, cut to `limit` characters as Slack counts them.

    Without `<` nothing can mention anybody or start a link, see
    https://docs.slack.dev/messaging/formatting-message-text#escaping. The limit is that of the escaped text, and no
    entity is cut in two.
    """
    whole = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if len(whole) <= limit:
        return whole
    return re.sub(r"&[a-z]*$", "", whole[: limit - 1]).rstrip() + "…"
