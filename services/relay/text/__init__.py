"""Readable text of a message for channels, console and command line: clean strings, titles, tables, context, links.

Labels and annotations are written by others. What these modules return contains no control character and none that
changes the direction of text, and a link is http(s) or absent. Escaping is up to each channel; `chat` does it for plain
text and Markdown.
"""

from services.relay.text.body import (
    ACKNOWLEDGED,
    ESCALATED,
    LAST_MESSAGE,
    AlertCard,
    AlertTable,
    ContextLine,
    View,
    build_view,
    format_digest,
    format_digest_reason,
    format_digest_title,
    format_entry,
    format_more,
    group_entries,
    list_alerts,
    list_fixes,
    list_group_links,
    list_images,
    list_incident_links,
    select_alerts,
    select_changed,
    sort_entries,
)
from services.relay.text.strings import (
    MAX_SHORT_URL,
    MAX_URL,
    Link,
    build_distinct,
    clean_line,
    clean_text,
    fit,
    fit_first,
    format_duration,
    format_period,
    format_seconds,
    format_time,
    quote_url,
    sanitize_url,
    truncate,
)
from services.relay.text.title import (
    MAX_TITLE,
    WORST_FIRST,
    Severity,
    compute_status,
    find_worst_severity,
    format_alert_title,
    format_counts,
    format_description,
    format_event_title,
    format_headline,
    format_omission,
    format_remark,
    format_state,
    format_subject,
    format_summary,
    format_title,
    is_resolved,
    limit_labels,
    rank_severity,
    select_contacts,
    select_own_labels,
    sort_labels,
)
from shared.kms.fixes import Fix
