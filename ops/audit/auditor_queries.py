"""Auditors' questions as ready commands: gcloud for the log, bq for the dataset. Pure."""

from collections.abc import Iterator
from textwrap import dedent, indent
from typing import Final

from ops.audit.plan import DATASET, KMS

_DATA_ACCESS_LOG: Final = "cloudaudit.googleapis.com%2Fdata_access"
_COLUMNS: Final = (
    "table(timestamp, protoPayload.authenticationInfo.firstof(principalEmail, principalSubject):label=WHO, "
    "protoPayload.methodName:label=WHAT, "
    "protoPayload.resourceName:label=KEY, protoPayload.requestMetadata.callerIp:label=FROM, "
    "protoPayload.status.message:label=ERROR)"
)
_CALLER_FORMAT: Final = (
    "value(protoPayload.authenticationInfo.firstof(principalEmail, principalSubject), "
    "protoPayload.requestMetadata.callerIp)"
)


def list_queries(project: str, *, bigquery: bool) -> Iterator[tuple[str, str]]:
    """Yield each question and its command."""
    read = f'logName="projects/{project}/logs/{_DATA_ACCESS_LOG}" AND protoPayload.serviceName="{KMS}"'
    command = read.replace("data_access", "activity")
    decrypted, encrypted = (f'{read} AND protoPayload.methodName="{method}"' for method in ("Decrypt", "Encrypt"))
    yield "Who decrypted, when, from where: the last day", _build_gcloud_command(project, decrypted, "1d", _COLUMNS)
    yield "Who encrypted, when, from where: the last day", _build_gcloud_command(project, encrypted, "1d", _COLUMNS)
    yield (
        "What was refused or failed: the last week",
        _build_gcloud_command(project, f"{read} AND severity>=ERROR", "7d", _COLUMNS),
    )
    yield (
        "Who changed a key, a version or who may use it: the last 30 days",
        _build_gcloud_command(project, command, "30d", _COLUMNS),
    )
    rare = " | sort | uniq -c | sort -n | head -n 20"
    yield (
        "Unusual callers: who decrypted from where least often in the last week",
        _build_gcloud_command(project, decrypted, "7d", _CALLER_FORMAT) + rare,
    )
    if bigquery:
        for question, sql in _BIGQUERY_QUERIES.items():
            text = indent(dedent(sql).strip(), "  ").replace("{who}", _CALLER_SQL)
            text = text.replace("{dataset}", f"{project}.{DATASET}")
            yield f"{question} (BigQuery)", f"bq query --project_id={project} --use_legacy_sql=false '\n{text}'"


def _build_gcloud_command(project: str, filter_: str, freshness: str, columns: str) -> str:
    return (
        f"gcloud logging read --project={project} --freshness={freshness} \\\n  '{filter_}' \\\n  --format='{columns}'"
    )


# Google makes a column when a value first comes: one that may not have come yet, such as an error, is read out of JSON.
# A workload of another cloud or of Kubernetes may have no address, only a subject.
_CALLER_SQL: Final = (
    'JSON_VALUE(TO_JSON(protopayload_auditlog), "$.authenticationInfo.principalEmail"), '
    'JSON_VALUE(TO_JSON(protopayload_auditlog), "$.authenticationInfo.principalSubject")'
)
_BIGQUERY_QUERIES: Final = {
    "Who decrypted, how often, from where: the last 30 days": """
        SELECT
          COALESCE({who}) AS who,
          protopayload_auditlog.resourceName AS key,
          protopayload_auditlog.requestMetadata.callerIp AS caller,
          COUNT(*) AS times, MIN(timestamp) AS first, MAX(timestamp) AS last
        FROM `{dataset}.cloudaudit_googleapis_com_data_access`
        WHERE timestamp > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 30 DAY)
          AND protopayload_auditlog.methodName = "Decrypt"
        GROUP BY who, key, caller
        ORDER BY times DESC""",
    "Who encrypted on which day, how often, from where: the last 30 days": """
        SELECT
          DATE(timestamp) AS day,
          COALESCE({who}) AS who,
          protopayload_auditlog.resourceName AS key,
          protopayload_auditlog.requestMetadata.callerIp AS caller,
          COUNT(*) AS times, MIN(timestamp) AS first, MAX(timestamp) AS last
        FROM `{dataset}.cloudaudit_googleapis_com_data_access`
        WHERE timestamp > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 30 DAY)
          AND protopayload_auditlog.methodName = "Encrypt"
        GROUP BY day, who, key, caller
        ORDER BY day DESC, times DESC""",
    "What was refused or failed, by reason: the last 30 days": """
        SELECT
          COALESCE({who}) AS who,
          protopayload_auditlog.methodName AS what,
          JSON_VALUE(TO_JSON(protopayload_auditlog), "$.status.message") AS error,
          COUNT(*) AS times, MAX(timestamp) AS last
        FROM `{dataset}.cloudaudit_googleapis_com_data_access`
        WHERE timestamp > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 30 DAY)
          AND severity = "ERROR"
        GROUP BY who, what, error
        ORDER BY times DESC""",
    "Unusual callers: who decrypted in the last week, and not in the 90 days before": """
        SELECT
          COALESCE({who}) AS who,
          protopayload_auditlog.requestMetadata.callerIp AS caller,
          COUNT(*) AS times, MIN(timestamp) AS first
        FROM `{dataset}.cloudaudit_googleapis_com_data_access`
        WHERE timestamp > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 97 DAY)
          AND protopayload_auditlog.methodName = "Decrypt"
        GROUP BY who, caller
        HAVING first > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 7 DAY)
        ORDER BY first""",
    "Who changed a key, a version or who may use it: the last two years": """
        SELECT
          timestamp,
          COALESCE({who}) AS who,
          protopayload_auditlog.methodName AS what,
          protopayload_auditlog.resourceName AS key
        FROM `{dataset}.cloudaudit_googleapis_com_activity`
        WHERE timestamp > TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 730 DAY)
        ORDER BY timestamp DESC""",
}
