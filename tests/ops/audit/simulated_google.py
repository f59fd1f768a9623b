"""Simulates Google's state and rules of projects as far as audit logging uses them."""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from tests.ops.audit.server import ReceivedRequest, RefusedError

Document = dict[str, Any]
KMS = "cloudkms.googleapis.com"
SHARED_WRITERS = ("group:cloud-logs@google.com", "serviceAccount:cloud-logs@system.gserviceaccount.com")
"""Of sinks without `uniqueWriterIdentity`, in whatever project."""


@dataclass
class World:
    """Everything that exists, by its name."""

    enabled: set[str] = field(default_factory=set)
    policies: dict[str, Document] = field(default_factory=dict)
    datasets: dict[str, Document] = field(default_factory=dict)
    sinks: dict[str, Document] = field(default_factory=dict)
    buckets: dict[str, Document] = field(default_factory=dict)
    bucket_policies: dict[str, Document] = field(default_factory=dict)
    unheard: dict[str, int] = field(default_factory=dict)
    """New writers, and how often IAM still calls them invalid."""
    slowness: int = 0
    """How often a new writer is called invalid, and an operation not done."""
    operations: dict[str, tuple[str, int]] = field(default_factory=dict)
    unpaid: bool = False
    """Whether no API can be enabled."""
    counter: int = 0

    def project(self, name: str) -> Document:
        """The policy of a project, which is made if there is none."""
        owner = {"role": "roles/owner", "members": ["user:owner@example.org"]}
        return self.policies.setdefault(name, {"version": 1, "bindings": [owner], "etag": self.etag()})

    def etag(self) -> str:
        self.counter += 1
        return f"BwX{self.counter:05d}A="

    def answer(self, request: ReceivedRequest) -> Any:
        handler: Callable[[ReceivedRequest], Any] = getattr(self, "_" + request.method.replace(".", "_").lower())
        return deepcopy(handler(request))

    def _serviceusage_services_get(self, request: ReceivedRequest) -> Document:
        name = request.path["name"]
        state = "ENABLED" if name in self.enabled else "DISABLED"
        return {"name": name, "parent": "projects/1234", "config": {"name": KMS}, "state": state}

    def _serviceusage_services_enable(self, request: ReceivedRequest) -> Document:
        name = f"operations/acat.{len(self.operations)}"
        self.operations[name] = (request.path["name"], self.slowness)
        return self._operation(name)

    def _serviceusage_operations_get(self, request: ReceivedRequest) -> Document:
        return self._operation(request.path["name"])

    def _operation(self, name: str) -> Document:
        service, left = self.operations[name]
        self.operations[name] = (service, left - 1)
        if left > 0:
            return {"name": name}
        if self.unpaid:
            return {"name": name, "done": True, "error": {"code": 9, "message": "Billing account not found"}}
        self.enabled.add(service)
        return {"name": name, "done": True, "response": {}}

    def _cloudresourcemanager_projects_getiampolicy(self, request: ReceivedRequest) -> Document:
        policy = self.project(request.path["resource"].removeprefix("projects/"))
        if (request.body.get("options") or {}).get("requestedPolicyVersion") != 3:
            return policy | {"bindings": [_plain(binding) for binding in policy["bindings"]]}
        return policy

    def _cloudresourcemanager_projects_setiampolicy(self, request: ReceivedRequest) -> Document:
        policy, new = self.project(request.path["resource"].removeprefix("projects/")), request.body["policy"]
        if new.get("etag") != policy["etag"]:
            raise RefusedError(409, "There were concurrent policy changes. Please retry.")
        mask = request.body.get("updateMask", "bindings,etag").split(",")
        if "auditConfigs" in mask:
            policy["auditConfigs"] = new.get("auditConfigs", [])
        if "bindings" in mask:
            plain = new.get("version") != 3
            policy["bindings"] = [_plain(binding) if plain else binding for binding in new.get("bindings", [])]
        policy["etag"] = self.etag()
        return policy

    def _logging_projects_sinks_get(self, request: ReceivedRequest) -> Document:
        return _found(self.sinks, request.path["sinkName"])

    def _logging_projects_sinks_create(self, request: ReceivedRequest) -> Document:
        name = f"{request.path['parent']}/sinks/{request.body['name']}"
        if name in self.sinks:
            raise RefusedError(409, f"Sink {name} already exists")
        self.sinks[name] = request.body | {"writerIdentity": self._writer(request), "resourceName": name}
        return self.sinks[name]

    def _logging_projects_sinks_update(self, request: ReceivedRequest) -> Document:
        sink = _found(self.sinks, request.path["sinkName"])
        own = sink["writerIdentity"] not in SHARED_WRITERS
        if own and request.query.get("uniqueWriterIdentity") != "true":
            raise RefusedError(400, "unique_writer_identity cannot be taken back")
        for name in request.query.get("updateMask", "destination,filter").split(","):
            sink.pop(name, None)
            sink |= {key: value for key, value in request.body.items() if key == name}
        sink["writerIdentity"] = sink["writerIdentity"] if own else self._writer(request)
        self.sinks[request.path["sinkName"]] = sink
        return sink

    def _writer(self, request: ReceivedRequest) -> str:
        if request.query.get("uniqueWriterIdentity") != "true":
            return SHARED_WRITERS[0]
        writer = "service-1234@gcp-sa-logging.iam.gserviceaccount.com"
        self.unheard.setdefault(writer, self.slowness)
        return f"serviceAccount:{writer}"

    def _heard(self, member: str) -> None:
        email = member.removeprefix("serviceAccount:")
        if "@" not in email:
            raise RefusedError(400, f"{email} is no member")
        if self.unheard.get(email, 0) > 0:
            self.unheard[email] -= 1
            raise RefusedError(400, f"IAM setPolicy failed: account {email} does not exist.")

    def _bigquery_datasets_get(self, request: ReceivedRequest) -> Document:
        return _found(self.datasets, f"{request.path['projectId']}.{request.path['datasetId']}")

    def _bigquery_datasets_insert(self, request: ReceivedRequest) -> Document:
        name = f"{request.path['projectId']}.{request.body['datasetReference']['datasetId']}"
        if name in self.datasets:
            raise RefusedError(409, f"Already Exists: Dataset {name}")
        default = {"access": [{"role": "OWNER", "specialGroup": "projectOwners"}]}
        self.datasets[name] = default | request.body | {"etag": self.etag(), "kind": "bigquery#dataset"}
        return self.datasets[name]

    def _bigquery_datasets_patch(self, request: ReceivedRequest) -> Document:
        dataset = self._bigquery_datasets_get(request)
        if request.headers.get("if-match", dataset["etag"]) != dataset["etag"]:
            raise RefusedError(412, "Precondition Failed")
        conditional = any("condition" in entry for entry in [*dataset["access"], *request.body["access"]])
        if conditional and request.query.get("accessPolicyVersion") != "3":
            raise RefusedError(400, "conditional access needs version 3")
        for entry in request.body["access"]:
            if entry not in dataset["access"] and "userByEmail" in entry:
                self._heard(entry["userByEmail"])
        dataset |= request.body | {"etag": self.etag()}
        return dataset

    def _storage_buckets_get(self, request: ReceivedRequest) -> Document:
        return _found(self.buckets, request.path["bucket"])

    def _storage_buckets_insert(self, request: ReceivedRequest) -> Document:
        name = request.body["name"]
        if name in self.buckets:
            raise RefusedError(409, "You already own this bucket.")
        given = {"projectNumber": "1234", "metageneration": "1", "location": request.body["location"].upper()}
        self.buckets[name] = request.body | given
        self.bucket_policies[name] = {"version": 1, "etag": "CAE=", "bindings": []}
        return self.buckets[name]

    def _storage_buckets_patch(self, request: ReceivedRequest) -> Document:
        bucket = self._storage_buckets_get(request)
        if request.query.get("ifMetagenerationMatch", bucket["metageneration"]) != bucket["metageneration"]:
            raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")
        switches = request.body.get("iamConfiguration", {})
        if "bucketPolicyOnly" in switches:
            raise RefusedError(400, "uniformBucketLevelAccess and bucketPolicyOnly contradict each other")
        bucket["iamConfiguration"] = bucket.get("iamConfiguration", {}) | switches
        bucket |= {key: value for key, value in request.body.items() if key != "iamConfiguration"}
        bucket["metageneration"] = str(int(bucket["metageneration"]) + 1)
        return bucket

    def _storage_buckets_getiampolicy(self, request: ReceivedRequest) -> Document:
        policy = _found(self.bucket_policies, request.path["bucket"])
        if request.query.get("optionsRequestedPolicyVersion") != "3":
            return policy | {"bindings": [_plain(binding) for binding in policy["bindings"]]}
        return policy

    def _storage_buckets_setiampolicy(self, request: ReceivedRequest) -> Document:
        policy = _found(self.bucket_policies, request.path["bucket"])
        if request.body.get("etag") != policy["etag"]:
            raise RefusedError(412, "Precondition Failed")
        for binding in request.body["bindings"]:
            for member in binding["members"]:
                self._heard(member)
        plain = request.body.get("version") != 3
        bindings = [_plain(binding) if plain else binding for binding in request.body["bindings"]]
        policy |= {"bindings": bindings, "etag": self.etag()}
        return policy


def _plain(binding: Document) -> Document:
    return {key: value for key, value in binding.items() if key != "condition"}


def _found(there: dict[str, Document], name: str) -> Document:
    if name not in there:
        raise RefusedError(404, f"Not found: {re.sub(r'[^ -~]', '?', name)}")
    return there[name]
