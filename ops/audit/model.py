"""The desired and the current state of a project, in Google's own format. Frozen, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

KMS: Final = "cloudkms.googleapis.com"
DATASET: Final = "kms_audit"
BIGQUERY_SINK: Final = "kms-audit-bigquery"
STORAGE_SINK: Final = "kms-audit-storage"
RETENTION_DAYS: Final = 730
COLD_STORAGE_CLASS: Final = "COLDLINE"
COLD_AFTER_DAYS: Final = 90
"""Auditors read the dataset; the bucket's old files are kept for the law, and cost a fifth in this class."""

Resource = dict[str, Any]
"""A resource as Google's API writes it in JSON."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Audit logging as it shall be in one project."""

    project: str
    exempted: frozenset[str] = frozenset()
    """Members whose reads are not logged, such as `serviceAccount:exporter@…`; their changes are."""
    bigquery: bool = False
    """Whether the logs also go to the dataset `kms_audit`."""
    bucket: str | None = None
    """The bucket that they also go to."""
    location: str = ""
    """The location of dataset and bucket, such as `europe-west3` or `EU`; unused without either."""

    @property
    def list_parts(self) -> tuple["AuditPart", ...]:
        """The parts in the order of their set-up: each needs only those before it."""
        return (
            AuditPart.API,
            AuditPart.POLICY,
            *((AuditPart.DATASET, AuditPart.BIGQUERY_SINK, AuditPart.DATASET_ACCESS) if self.bigquery else ()),
            *((AuditPart.BUCKET, AuditPart.STORAGE_SINK, AuditPart.BUCKET_ACCESS) if self.bucket else ()),
        )


class AuditPart(StrEnum):
    """A part that is read and written as a whole."""

    API = "API"
    POLICY = "Data Access logs"
    DATASET = "BigQuery dataset"
    BIGQUERY_SINK = "sink to BigQuery"
    DATASET_ACCESS = "who may write to the dataset"
    BUCKET = "bucket"
    STORAGE_SINK = "sink to Cloud Storage"
    BUCKET_ACCESS = "who may write to the bucket"


CurrentState = Mapping[AuditPart, Resource | None]
"""The current state of each part of the desired state; None if it does not exist."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part that is not as configured."""

    part: AuditPart
    old: Resource | None
    new: Resource
