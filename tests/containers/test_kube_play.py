"""The chart's exporter and relay, as `podman kube play` runs what Helm renders, between the demo's other parts.

They have the host's network, so that the emulator and the stand-ins are on this machine for them, and ports that are
free on it. All else is as in a cluster: the user, the read-only root, no capability, the volume, the files of ConfigMap
and Secret.
"""

import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import yaml

from ops.demo import scenario, stack
from ops.demo.configuration import write_configuration
from ops.demo.processes import Ports, run_processes
from ops.demo.timeline import Timeline
from tests.containers.engine import Engine
from tests.ops.helm.rendering import Object, containers, of_kind, pods, rendered

SECRETS: Final = "/run/secrets/keypulse"
PLAYED: Final = {"ConfigMap", "PersistentVolumeClaim", "Deployment"}
"""The rest is for what podman has not: policies, accounts, a cluster's names."""
OWNED: Final = {"volume.podman.io/uid": "65532", "volume.podman.io/gid": "65532"}
"""What a cluster does for `fsGroup`, podman does for this."""
RELEASE: Final = f"keypulse-{secrets.token_hex(3)}"
"""Beside the pods of another run, if there are any."""
PARTS: Final = ("exporter", "relay")


@pytest.fixture
def podman(engine: Engine) -> Engine:
    """Podman, with the images where a docker daemon built them."""
    if shutil.which("podman") is None:
        pytest.skip("a chart is played by podman, and there is only docker: install podman")
    found = Engine("podman")
    if engine != found:
        for part in PARTS:
            found.out("pull", f"docker-daemon:localhost/keypulse/{part}:latest")
    return found


async def test_an_alert_goes_through_the_pods_and_they_may_do_nothing_else(podman: Engine, tmp_path: Path) -> None:
    ports = Ports.pick_free()
    write_configuration(tmp_path, ports)
    token = secrets.token_hex(16)
    objects = [*_on_free_ports(_rendered(tmp_path), ports), *_secrets(tmp_path, token)]
    probes = _without_probes(objects)

    async with (
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=2), headers={"Authorization": f"Bearer {token}"}
        ) as http,
        run_processes(tmp_path) as children,
    ):
        whole, happened = stack.Stack(ports, http, children, tmp_path), Timeline(lambda _hop: None)
        programs = stack.find_program("prometheus"), stack.find_program("alertmanager", "prometheus-alertmanager")
        for name, command in stack.build_commands(tmp_path, ports, *programs).items():
            if name not in PARTS:
                await children.start(name, command)
        with _played(podman, objects, tmp_path / "keypulse.yml"):
            await stack.wait_until_healthy(whole)
            for url in probes:
                async with http.get(url) as answer:
                    assert answer.status == 200, url
            for part in PARTS:
                _may_do_nothing_else(podman, part)
            await scenario.run_incident(whole, happened)

    assert happened.missing == []
    channels, states = ("slack", "email", "pagerduty"), ("firing", "resolved")
    assert {(hop.channel, hop.state) for hop in happened.hops if hop.name == "delivered"} == set(
        product(channels, states)
    )


def _rendered(folder: Path) -> list[Object]:
    """What Helm makes of the demo's configurations, with the paths that a pod has."""
    exporter, relay = (yaml.safe_load((folder / f"{part}.yml").read_text()) for part in PARTS)
    exporter["targets"][0]["canary_dir"] = "/var/lib/keypulse"
    for channel in relay["channels"].values():
        for key in {"token_file", "routing_key_file"} & set(channel):
            channel[key] = f"{SECRETS}/{channel[key]}"
    relay["interactive"]["app_token_file"] = f"{SECRETS}/slack_app_token"
    relay["messages"]["runbook"] = "/opt/keypulse/docs/KMS_OPERATIONS.md"
    for config in (exporter, relay):
        for key in {"listen", "auth", "database"} & set(config):
            del config[key]  # the chart's
    values = {
        "image": {"repository": "localhost/keypulse", "tag": "latest", "pullPolicy": "Never"},
        "exporter": {"config": exporter, "existingSecret": f"{RELEASE}-exporter"},
        "relay": {"config": relay, "existingSecret": f"{RELEASE}-relay"},
        "rotator": {"enabled": False},
        "dashboard": {"enabled": False},
        "alertmanager": {"snippet": False},
    }
    objects = [each for each in rendered(values, name=RELEASE) if each["kind"] in PLAYED]
    for claim in of_kind("PersistentVolumeClaim", objects).values():
        claim["metadata"]["annotations"] |= OWNED
    return objects


def _on_free_ports(objects: list[Object], ports: Ports) -> list[Object]:
    """The chart's ports are a pod's own; on the host's network somebody else may have them."""
    for _, pod in pods(objects):
        for container in containers(pod):
            (port,) = container["ports"]
            own = getattr(ports, port["name"])
            config = of_kind("ConfigMap", objects)[f"{RELEASE}-{port['name']}"]["data"]
            listen, free = (f"listen: 0.0.0.0:{number}\n" for number in (port["containerPort"], own))
            (file,) = config
            assert listen in config[file]
            config[file] = config[file].replace(listen, free)
            port["containerPort"] = own
    return objects


def _secrets(folder: Path, token: str) -> list[Object]:
    names = ("relay_token", "slack_token", "slack_app_token", "pagerduty_key")
    files = {name: (folder / name).read_text() for name in names}
    secret_files = {"exporter": {"admin_token": token}, "relay": {**files, "relay_admin": token, "relay_viewer": token}}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{RELEASE}-{part}"}, "stringData": data}
        for part, data in secret_files.items()
    ]


def _without_probes(objects: list[Object]) -> list[str]:
    """Takes the probes out, since podman would ask by a curl that no image has; what a kubelet would ask, as URLs."""
    urls = []
    for _, pod in pods(objects):
        for container in containers(pod):
            (port,) = container["ports"]
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                http_get = container.pop(name)["httpGet"]
                assert http_get["port"] == port["name"]
                urls.append(f"{http_get['scheme'].lower()}://127.0.0.1:{port['containerPort']}{http_get['path']}")
    return urls


@contextmanager
def _played(podman: Engine, objects: list[Object], file: Path) -> Iterator[None]:
    file.write_text(yaml.safe_dump_all(objects))
    podman.out("kube", "play", "--network=host", "--log-driver=k8s-file", file)
    try:
        yield
    except BaseException:
        for part in PARTS:
            sys.stderr.write(podman.run("logs", _container(part)).stderr)
        raise
    finally:
        podman.out("kube", "down", "--force", file)
        assert not [left for kind in ("pod", "volume", "secret") if RELEASE in (left := podman.out(kind, "ls"))]


def _may_do_nothing_else(podman: Engine, part: str) -> None:
    """Asked from inside: who it is, what it may do, where it may write."""
    response = json.loads(
        podman.out("exec", _container(part), "python3", "-c", _INSIDE, f"{SECRETS}/x", "/var/lib/keypulse/x")
    )

    assert response["uid"] == response["gid"] == 65532
    assert int(response["status"]["CapEff"], 16) == int(response["status"]["CapBnd"], 16) == 0
    assert response["status"]["NoNewPrivs"] == "1"
    assert response["status"]["Seccomp"] == "2"
    refused = "Read-only file system"
    assert response["writes"] == {
        "/x": refused,
        "/etc/keypulse/x": refused,
        f"{SECRETS}/x": refused,
        "/var/lib/keypulse/x": None,
    }


_INSIDE: Final = """
import json, os, sys
def write(path):
    try:
        open(path, "w").close()
        os.remove(path)
    except OSError as error:
        return error.strerror
status = dict(line.rstrip().split(":\t", 1) for line in open("/proc/1/status") if ":\t" in line)
writes = {path: write(path) for path in ("/x", "/etc/keypulse/x", *sys.argv[1:])}
print(json.dumps({"uid": os.getuid(), "gid": os.getgid(), "status": status, "writes": writes}))
"""


def _container(part: str) -> str:
    """As podman names the first pod of a Deployment."""
    return f"{RELEASE}-{part}-pod-{part}"
