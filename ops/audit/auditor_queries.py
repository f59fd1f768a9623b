"""Auditors' questions as ready commands: gcloud for the log, bq for the dataset."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Final

from ops.audit.plan import DATASET, KMS
from shared.config.yaml_file import read_yaml

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
        for question, sql in read_yaml(Path(__file__).with_name("bigquery.yml")).items():
            text = indent(sql.strip(), "  ").replace("{who}", _CALLER_SQL)
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
