"""The check against Google's documents refuses what Google does not know: so the tests beside it mean something."""

from typing import Any

import pytest

from tests.ops.audit.discovery import AgainstDiscoveryError, Method, methods

METHODS = {method.name: method for method in methods()}
SINK: dict[str, Any] = {"name": "a", "destination": "storage.googleapis.com/b"}


def method(name: str) -> Method:
    return METHODS[name]


def test_what_google_knows_passes() -> None:
    create = method("logging.projects.sinks.create")
    create.check_query({"uniqueWriterIdentity": "true", "alt": "json"})
    create.check_body(SINK | {"bigqueryOptions": {"usePartitionedTables": True}})
    create.check_answer(SINK | {"writerIdentity": "serviceAccount:a"})
    assert create.path.fullmatch("/logging/v2/projects/acme-prod/sinks")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("logging.projects.sinks.create", SINK | {"filtre": "x"}),
        ("logging.projects.sinks.create", SINK | {"disabled": "true"}),
        ("logging.projects.sinks.create", SINK | {"writerIdentity": "serviceAccount:a"}),
        ("logging.projects.sinks.create", SINK | {"bigqueryOptions": {"partitioned": True}}),
        ("logging.projects.sinks.create", None),
        ("cloudresourcemanager.projects.setIamPolicy", {"policy": {"version": "3"}}),
        ("cloudresourcemanager.projects.setIamPolicy", {"policy": {"version": True}}),
        ("cloudresourcemanager.projects.setIamPolicy", {"policy": {"auditConfigs": {"service": "x"}}}),
        (
            "cloudresourcemanager.projects.setIamPolicy",
            {"policy": {"auditConfigs": [{"auditLogConfigs": [{"logType": "EVERYTHING"}]}]}},
        ),
        ("bigquery.datasets.patch", {"defaultTableExpirationMs": "soon"}),
        ("storage.buckets.get", {}),
    ],
)
def test_a_body_that_google_does_not_know_is_refused(name: str, body: Any) -> None:
    with pytest.raises(AgainstDiscoveryError):
        method(name).check_body(body)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("logging.projects.sinks.create", {"uniqueWriter": "true"}),
        ("logging.projects.sinks.create", {"uniqueWriterIdentity": "yes"}),
        ("storage.buckets.insert", {}),
        ("bigquery.datasets.patch", {"updateMode": "ACL"}),
        ("bigquery.datasets.get", {"accessPolicyVersion": "three"}),
    ],
)
def test_a_query_that_google_does_not_know_is_refused(name: str, query: dict[str, str]) -> None:
    with pytest.raises(AgainstDiscoveryError):
        method(name).check_query(query)


def test_an_answer_that_google_would_not_give_is_refused() -> None:
    with pytest.raises(AgainstDiscoveryError):
        method("storage.buckets.get").check_answer({"metageneration": 4})
