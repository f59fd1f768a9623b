"""A method of Google's that was refused → the permission that it needs, and the role to ask for. Pure.

The roles are predefined ones, and narrow: https://cloud.google.com/iam/docs/roles-permissions
"""

from typing import Final

_USAGE_ADMIN: Final = "roles/serviceusage.serviceUsageAdmin"
_DATA_OWNER: Final = "roles/bigquery.dataOwner"
_BUCKETS: Final = "roles/storage.admin"
_OBJECTS: Final = "roles/storage.objectViewer"
_LOGS: Final = "roles/logging.privateLogViewer"
_SINKS: Final = "roles/logging.configWriter"

READ_LOGS: Final = "logging.privateLogEntries.list"
"""Without it, a list of entries leaves the Data Access logs out, and says nothing of that."""

NEEDED: Final = {
    "serviceusage.services.get": ("serviceusage.services.get", "roles/serviceusage.serviceUsageViewer"),
    "serviceusage.services.enable": ("serviceusage.services.enable", _USAGE_ADMIN),
    "serviceusage.operations.get": ("serviceusage.operations.get", _USAGE_ADMIN),
    "cloudresourcemanager.projects.getIamPolicy": (
        "resourcemanager.projects.getIamPolicy",
        "roles/iam.securityReviewer",
    ),
    "cloudresourcemanager.projects.setIamPolicy": (
        "resourcemanager.projects.setIamPolicy",
        "roles/resourcemanager.projectIamAdmin",
    ),
    "logging.projects.sinks.get": ("logging.sinks.get", _SINKS),
    "logging.projects.sinks.create": ("logging.sinks.create", _SINKS),
    "logging.projects.sinks.update": ("logging.sinks.update", _SINKS),
    "logging.entries.list": (READ_LOGS, _LOGS),
    "bigquery.datasets.get": ("bigquery.datasets.get", "roles/bigquery.metadataViewer"),
    "bigquery.datasets.insert": ("bigquery.datasets.create", _DATA_OWNER),
    "bigquery.datasets.patch": ("bigquery.datasets.update", _DATA_OWNER),
    "bigquery.jobs.query": (
        "bigquery.jobs.create and bigquery.tables.getData",
        "roles/bigquery.jobUser and roles/bigquery.dataViewer",
    ),
    "storage.buckets.get": ("storage.buckets.get", _BUCKETS),
    "storage.buckets.insert": ("storage.buckets.create", _BUCKETS),
    "storage.buckets.patch": ("storage.buckets.update", _BUCKETS),
    "storage.buckets.getIamPolicy": ("storage.buckets.getIamPolicy", _BUCKETS),
    "storage.buckets.setIamPolicy": ("storage.buckets.setIamPolicy", _BUCKETS),
    "storage.objects.list": ("storage.objects.list", _OBJECTS),
    "storage.objects.get_media": ("storage.objects.get", _OBJECTS),
    "cloudkms.projects.locations.keyRings.list": ("cloudkms.keyRings.list", "roles/cloudkms.viewer"),
}
"""By API and method."""


def advice(method: str) -> str:
    """What to ask for, in words; Google answers the same to a name that is somebody else's or nobody's."""
    if method not in NEEDED:  # it needs none
        return "look whether the names are right"
    permission, role = NEEDED[method]
    return f"it needs {permission}: ask for {role} on the project, and look whether the names are right"
