"""Each part in the shapes that it may have."""

from typing import Any

import yaml

from tests.ops.helm.matrix import KEY, MATRIX
from tests.ops.helm.rendering import OWN_IMAGES, containers, of_kind, pods, rendered


def test_what_comes_by_itself_is_the_exporter_the_relay_and_a_rotator_that_is_suspended() -> None:
    objects = rendered()

    assert set(of_kind("Deployment", objects)) == {"keypulse-exporter", "keypulse-relay"}
    assert of_kind("CronJob", objects)["keypulse-rotator"]["spec"]["suspend"] is True


def test_an_exporter_that_has_nothing_to_watch_waits_for_it() -> None:
    """It would refuse to start."""
    target, backend = {"name": "a", "key": KEY}, {"health_url": "http://ledger/healthz"}

    def replicas(config: dict[str, Any]) -> int:
        values = {"exporter": {"config": {"service": "ledger"} | config}}
        return int(of_kind("Deployment", rendered(values))["keypulse-exporter"]["spec"]["replicas"])

    assert replicas({}) == 0
    assert replicas({"targets": [target]}) == 1
    assert replicas({"backends": [backend]}) == 1


def test_one_relay_keeps_its_outbox_on_a_volume_and_lets_go_of_it_before_the_next_one_starts() -> None:
    objects = rendered()
    relay = of_kind("Deployment", objects)["keypulse-relay"]["spec"]

    assert relay["replicas"] == 1
    assert relay["strategy"] == {"type": "Recreate"}
    claim = {"name": "keypulse-data", "persistentVolumeClaim": {"claimName": "keypulse-relay"}}
    assert claim in relay["template"]["spec"]["volumes"]
    assert of_kind("PodDisruptionBudget", objects) == {}
    assert "topologySpreadConstraints" not in relay["template"]["spec"]


def test_relays_on_postgresql_have_no_volume_are_spread_and_one_of_them_is_always_there() -> None:
    objects = rendered(MATRIX["the README's replicas"])
    relay = of_kind("Deployment", objects)["keypulse-relay"]["spec"]
    pod = relay["template"]["spec"]

    assert relay["replicas"] == 2
    assert relay["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert {"name": "keypulse-data", "emptyDir": {}} in pod["volumes"]
    assert "keypulse-relay" not in of_kind("PersistentVolumeClaim", objects)
    budget = of_kind("PodDisruptionBudget", objects)["keypulse-relay"]["spec"]
    assert budget["maxUnavailable"] == 1
    spread = {each["topologyKey"]: each["labelSelector"] for each in pod["topologySpreadConstraints"]}
    assert set(spread) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(selector == budget["selector"] == relay["selector"] for selector in spread.values())
    folder = "/run/secrets/keypulse-postgres"
    assert pod["containers"][0]["env"] == [{"name": "PGPASSWORD_FILE", "value": f"{folder}/password"}]
    assert {"name": "keypulse-postgres", "secret": {"secretName": "keypulse-postgres"}} in pod["volumes"]
    mounted = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted["keypulse-postgres"] == {"name": "keypulse-postgres", "mountPath": folder, "readOnly": True}


def test_what_cannot_be_made_again_outlives_an_uninstall() -> None:
    claims = of_kind("PersistentVolumeClaim", rendered(MATRIX["everything on"]))

    assert set(claims) == {"keypulse-exporter", "keypulse-relay", "keypulse-rotator", "keypulse-backend"}
    for claim in claims.values():
        assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_rotator_rotates_all_that_its_driver_can() -> None:
    job = of_kind("CronJob", rendered(MATRIX["everything on"]))["keypulse-rotator"]["spec"]
    pod = job["jobTemplate"]["spec"]["template"]

    assert job["suspend"] is False
    assert job["concurrencyPolicy"] == "Forbid"
    assert job["startingDeadlineSeconds"] == 3600, "or what was missed while it was suspended would be made up for"
    assert [container["command"] + container["args"][:-1] for container in containers(pod)] == [
        ["keypulse-rotator", "run", "--all"],
    ]


def test_workload_identity_is_an_annotation_of_the_service_account() -> None:
    accounts = of_kind("ServiceAccount", rendered(MATRIX["the values to begin with"]))

    assert accounts["keypulse-exporter"]["metadata"]["annotations"] == {
        "iam.gke.io/gcp-service-account": "keypulse-exporter@ledger-prod.iam.gserviceaccount.com"
    }


def test_an_image_is_named_by_part_and_version_or_as_a_whole() -> None:
    images = {name: pod["spec"]["containers"][0]["image"] for name, pod in pods(rendered(MATRIX["names of one's own"]))}

    assert images["kp-exporter"] == "registry.ledger.test/kp/exporter:2"
    assert images["kp-relay"].startswith("registry.ledger.test/relay@sha256:")
    _, relay = next(each for each in pods(rendered()) if each[0] == "keypulse-relay")
    assert relay["spec"]["containers"][0]["image"] == f"{OWN_IMAGES}/relay:0.1.0"


def test_helm_s_test_reads_the_relay_as_a_viewer() -> None:
    service = {"smokeTest": {"baseUrl": "http://ledger.ledger.svc:8000"}}

    def read_key(tokens: list[dict[str, str]]) -> str:
        pod = of_kind("Pod", rendered({**service, "relay": {"config": {"auth": {"tokens": tokens}}}}))["keypulse-smoke"]
        volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "relay")
        return str(volume["secret"]["items"][0]["key"])

    auditor = {"name": "auditor", "role": "viewer", "file": "/run/secrets/keypulse/auditor"}
    assert read_key([auditor | {"name": "ci", "role": "admin", "file": "/x/ci"}, auditor]) == "auditor"
    relay = yaml.safe_load(of_kind("ConfigMap", rendered(service))["keypulse-relay"]["data"]["relay.yml"])
    (viewer,) = relay["auth"]["tokens"]
    assert (viewer["role"], viewer["file"]) == ("viewer", "/run/secrets/keypulse/relay_viewer")


def test_helm_s_test_is_the_smoke_test_with_what_it_needs() -> None:
    smoke = of_kind("Pod", rendered(MATRIX["everything on"]))["keypulse-smoke"]
    container = smoke["spec"]["containers"][0]

    assert smoke["metadata"]["annotations"]["helm.sh/hook"] == "test"
    deleted = smoke["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert deleted == "before-hook-creation", "`helm test --logs` finds no log of a pod that is gone"
    assert container["command"] == ["keypulse-smoke"]
    assert container["args"] == [
        "--verbose",
        "--base-url=http://keypulse-backend.ops.svc:8000",
        "--environment=production",
        "--token-file=/run/secrets/service/token",
        "--relay=http://keypulse-relay.ops.svc:9912",
        "--relay-token-file=/run/secrets/relay/relay_viewer",
        "--prometheus=http://prometheus.monitoring.svc:9090",
        "--alertmanager=http://alertmanager.monitoring.svc:9093",
        "--test-alert=warning",
    ]
    secrets = {volume["name"]: volume["secret"] for volume in smoke["spec"]["volumes"]}
    assert secrets["service"]["items"] == [{"key": "records_token", "path": "token"}]
    assert secrets["relay"]["items"] == [{"key": "relay_viewer", "path": "relay_viewer"}], "not what its channels send"
    _, secure = next(each for each in pods(rendered(MATRIX["TLS and users"])) if each[0] == "keypulse-smoke")
    assert {"name": "SSL_CERT_FILE", "value": "/run/secrets/ca/ca.crt"} in containers(secure)[0]["env"]
    assert {"name": "ca", "mountPath": "/run/secrets/ca", "readOnly": True} in containers(secure)[0]["volumeMounts"]
    assert of_kind("Pod", rendered()) == {}, "there is no service to look at"
    own = rendered({"smokeTest": {"baseUrl": "https://service.ledger.test"}})
    assert (
        "--base-url=https://service.ledger.test"
        in of_kind("Pod", own)["keypulse-smoke"]["spec"]["containers"][0]["args"]
    )
