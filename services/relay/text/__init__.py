"""Readable text of a message for channels, console and command line: clean strings, titles, tables, context, links.

Labels and annotations are written by others. What these modules return contains no control character and none that
changes the direction of text, and a link is http(s) or absent. Escaping is up to each channel.
"""

from services.relay.text.context import ContextLine, join_items, list_context
from services.relay.text.fixes import MAX_FIXES, list_fixes
from services.relay.text.labels import (
    Severity,
    find_worst_severity,
    limit_labels,
    select_own_labels,
    sort_labels,
)
from services.relay.text.links import list_alerts, list_group_links
from services.relay.text.strings import (
    MAX_SHORT_URL,
    MAX_URL,
    Link,
    clean_line,
    clean_text,
    quote_url,
    sanitize_url,
    truncate,
)
from services.relay.text.table import AlertCard, AlertTable, Arrangement, arrange_alerts, build_table, select_alerts
from services.relay.text.times import format_duration, format_period, format_short_time, format_time
from services.relay.text.title import (
    MAX_REMARK,
    MAX_TITLE,
    compute_duration,
    compute_status,
    format_alert_title,
    format_class,
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
    has_cause,
    is_resolved,
    put_into_past,
    select_contacts,
)
from shared.kms.fixes import Fix

__all__ = [
    "MAX_FIXES",
    "MAX_REMARK",
    "MAX_SHORT_URL",
    "MAX_TITLE",
    "MAX_URL",
    "AlertCard",
    "AlertTable",
    "Arrangement",
    "ContextLine",
    "Fix",
    "Link",
    "Severity",
    "arrange_alerts",
    "build_table",
    "clean_line",
    "clean_text",
    "compute_duration",
    "compute_status",
    "find_worst_severity",
    "format_alert_title",
    "format_class",
    "format_counts",
    "format_description",
    "format_duration",
    "format_event_title",
    "format_headline",
    "format_omission",
    "format_period",
    "format_remark",
    "format_short_time",
    "format_state",
    "format_subject",
    "format_summary",
    "format_time",
    "format_title",
    "has_cause",
    "is_resolved",
    "join_items",
    "limit_labels",
    "list_alerts",
    "list_context",
    "list_fixes",
    "list_group_links",
    "put_into_past",
    "quote_url",
    "sanitize_url",
    "select_alerts",
    "select_contacts",
    "select_own_labels",
    "sort_labels",
    "truncate",
]
