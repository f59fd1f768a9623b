"""What Google writes about the use of KMS: into the log, and from there through the sinks, some looks later."""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.ops.audit.server import ReceivedRequest, RefusedError
from tests.ops.audit.simulated_google import KMS, Document, World

CALLER = "user:operator@example.org"
SEVERITIES = ["INFO", "NOTICE", "WARNING", "ERROR"]


def selects(conditions: str, entry: Document) -> bool:
    """Whether a filter of the log, of conditions that must all be met, selects an entry."""
    return all(_meets(condition, entry) for condition in conditions.split(" AND "))


def _meets(condition: str, entry: Document) -> bool:
    found = re.fullmatch(r'([\w.]+)(=|:|>=)"?([^"]+)"?', condition)
    assert found, condition
    value: Any = entry
    for name in found[1].split("."):
        value = value[name]
    if found[2] == ">=":
        assert found[1] == "severity"
        return SEVERITIES.index(value) >= SEVERITIES.index(found[3])
    return found[3] == value if found[2] == "=" else found[3] in value


@dataclass
class LoggingWorld(World):
    """A world in which operations of KMS are logged, if the policy says so, and routed, if a sink may write."""

    now: datetime = datetime(2026, 1, 2, 23, 59, 50, tzinfo=UTC)
    delay: int = 0
    """After how many looks in vain an entry shows, in each place."""
    entries: list[Document] = field(default_factory=list)
    rows: dict[str, list[Document]] = field(default_factory=dict)
    objects: dict[str, dict[str, bytes]] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    """Places where none shows."""
    reads: dict[str, int] = field(default_factory=dict)
    log_readers: bool = True
    empty_pages: int = 0

    def _cloudresourcemanager_projects_testiampermissions(self, request: ReceivedRequest) -> Document:
        return {"permissions": request.body["permissions"]} if self.log_readers else {}

    def _cloudkms_projects_locations_keyrings_list(self, request: ReceivedRequest) -> Document:
        project = request.path["parent"].split("/")[1]
        if f"projects/{project}/services/{KMS}" not in self.enabled:
            raise RefusedError(403, "Cloud KMS API has not been used in this project", "SERVICE_DISABLED")
        if self._logged(project, "ADMIN_READ"):
            self._write(project, request)
        return {"totalSize": 0}

    def _logged(self, project: str, kind: str) -> bool:
        configs = [each for each in self.project(project).get("auditConfigs", []) if each["service"] == KMS]
        logs = [log for config in configs for log in config["auditLogConfigs"] if log["logType"] == kind]
        return bool(logs) and all(CALLER not in log.get("exemptedMembers", []) for log in logs)

    def _write(self, project: str, request: ReceivedRequest) -> None:
        entry = {
            "logName": f"projects/{project}/logs/cloudaudit.googleapis.com%2Fdata_access",
            "timestamp": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "insertId": str(len(self.entries)),
            "protoPayload": {
                "serviceName": KMS,
                "methodName": "ListKeyRings",
                "requestMetadata": {"callerSuppliedUserAgent": f"{request.headers['user-agent']},gzip(gfe)"},
            },
        }
        self.entries.append(entry)
        for name, sink in self.sinks.items():
            is_selected = name.startswith(f"projects/{project}/") and not sink.get("disabled")
            if not is_selected or not selects(sink["filter"], entry):
                continue
            kind, _, target = sink["destination"].partition("/")
            if kind == "bigquery.googleapis.com":
                dataset = target.removeprefix("projects/").replace("/datasets/", ".")
                email = sink["writerIdentity"].removeprefix("serviceAccount:")
                if {"role": "WRITER", "userByEmail": email} in self.datasets[dataset]["access"]:
                    self.rows.setdefault(dataset, []).append(entry)
            else:
                granted = self.bucket_policies[target]["bindings"]
                if {"role": "roles/storage.objectCreator", "members": [sink["writerIdentity"]]} in granted:
                    file = self.now.strftime("cloudaudit.googleapis.com/data_access/%Y/%m/%d/%H:00:00_%H:59:59_S0.json")
                    before = self.objects.setdefault(target, {}).get(file, b"")
                    self.objects[target][file] = before + json.dumps(entry).encode() + b"\n"

    def _shows(self, location: str) -> bool:
        self.reads[location] = self.reads.get(location, 0) + 1
        return self.reads[location] > self.delay and location not in self.late

    def _logging_entries_list(self, request: ReceivedRequest) -> Document:
        if self.empty_pages and "pageToken" not in request.body:
            return {"nextPageToken": "1"}
        (project,) = [name.removeprefix("projects/") for name in request.body["resourceNames"]]
        wanted = dict(re.findall(r'([\w.]+)(?:=|:|>=)"([^"]*)"', request.body["filter"]))
        found = [
            entry
            for entry in self.entries
            if entry["logName"] == wanted["logName"]
            and f"projects/{project}/" in entry["logName"]
            and entry["protoPayload"]["serviceName"] == wanted["protoPayload.serviceName"]
            and wanted["protoPayload.requestMetadata.callerSuppliedUserAgent"]
            in entry["protoPayload"]["requestMetadata"]["callerSuppliedUserAgent"]
            and datetime.fromisoformat(entry["timestamp"]) >= datetime.fromisoformat(wanted["timestamp"])
        ]
        return {"entries": found} if found and self._shows(f"log {project}") else {}

    def _bigquery_jobs_query(self, request: ReceivedRequest) -> Document:
        table = re.search(r"`([^`]+)\.cloudaudit_googleapis_com_data_access`", request.body["query"])
        assert table, request.body["query"]
        if self.datasets[table[1]]["location"] != request.body["location"] or table[1] not in self.rows:
            raise RefusedError(404, "Not found: Table")
        given = {each["name"]: each["parameterValue"]["value"] for each in request.body["queryParameters"]}
        count = sum(given["mark"] in json.dumps(row) for row in self.rows[table[1]])
        if count and not self._shows(f"BigQuery {table[1]}"):
            return {"jobComplete": False}
        return {"jobComplete": True, "rows": [{"f": [{"v": str(count)}]}]}

    def _storage_objects_list(self, request: ReceivedRequest) -> Document:
        bucket, query = request.path["bucket"], request.query
        there = self.objects.get(bucket, {})
        if there and not self._shows(f"bucket {bucket}"):
            return {}
        names = [n for n in sorted(there) if query["startOffset"] <= n < query["endOffset"] and query["prefix"] in n]
        return {"items": [{"name": name, "size": str(len(there[name]))} for name in names]}

    def _storage_objects_get_media(self, request: ReceivedRequest) -> Any:
        start, end = request.headers["range"].removeprefix("bytes=").split("-")
        return self.objects[request.path["bucket"]][request.path["object"]][int(start) : int(end) + 1]
