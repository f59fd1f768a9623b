"""What a person wishes for a project, and what is there, in Google's own words. Frozen, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

KMS: Final = "cloudkms.googleapis.com"
DATASET: Final = "kms_audit"
BIGQUERY_SINK: Final = "kms-audit-bigquery"
STORAGE_SINK: Final = "kms-audit-storage"
RETENTION_DAYS: Final = 730

Resource = dict[str, Any]
"""A resource as Google's API writes it in JSON."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Audit logging as it shall be in one project."""

    project: str
    exempted: frozenset[str] = frozenset()
    """Members whose reads are not logged, such as `serviceAccount:exporter@…`; what they change is."""
    bigquery: bool = False
    """Whether the logs also go to the dataset `kms_audit`."""
    bucket: str | None = None
    """The bucket that they also go to."""
    location: str = ""
    """Where dataset and bucket are, such as `europe-west3` or `EU`; unused without either."""

    @property
    def list_parts(self) -> tuple["AuditPart", ...]:
        """What is looked at and set up, in this order: each needs only what comes before it."""
        return (
            AuditPart.API,
            AuditPart.POLICY,
            *((AuditPart.DATASET, AuditPart.BIGQUERY_SINK, AuditPart.DATASET_ACCESS) if self.bigquery else ()),
            *((AuditPart.BUCKET, AuditPart.STORAGE_SINK, AuditPart.BUCKET_ACCESS) if self.bucket else ()),
        )


class AuditPart(StrEnum):
    """One thing that is read and written as a whole."""

    API = "API"
    POLICY = "Data Access logs"
    DATASET = "BigQuery dataset"
    BIGQUERY_SINK = "sink to BigQuery"
    DATASET_ACCESS = "who may write to the dataset"
    BUCKET = "bucket"
    STORAGE_SINK = "sink to Cloud Storage"
    BUCKET_ACCESS = "who may write to the bucket"


CurrentState = Mapping[AuditPart, Resource | None]
"""Of each part that the wish is about, what is there; None where it does not exist."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part that is not as it is wished."""

    part: AuditPart
    old: Resource | None
    new: Resource
