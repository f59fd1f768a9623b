"""Each image by itself: who it runs as, what is in it, and that it needs neither a shell nor a root to write to."""

import json
import os
import signal
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.containers.engine import ROOT, Engine

TARGETS = ("exporter", "relay", "backend", "rotator", "emulator", "stand-ins")
OWN_MEGABYTES = {"relay": 320}
"""What an image may add to its base, where it is not 200: the extras `apprise` and `charts` are in the relay's."""
STRICT = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none",
    "--volume=/dev/null:/bin/sh:ro", "--volume=/dev/null:/bin/bash:ro", "--volume=/dev/null:/bin/dash:ro",
)  # fmt: skip
EMULATOR = ("--key=projects/demo/locations/global/keyRings/app/cryptoKeys/ledger",)


def image(target: str) -> str:
    return f"localhost/keypulse/{target}"


def strict(engine: Engine) -> tuple[str, ...]:
    """Podman makes /tmp writable under a read-only root, docker does not."""
    return (*STRICT, *(["--read-only-tmpfs=false"] if engine.name == "podman" else []))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_number_and_says_what_it_is(target: str, engine: Engine) -> None:
    inspected = json.loads(engine.out("image", "inspect", image(target)))[0]
    config = inspected["Config"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][0] in {f"keypulse-{target}", "python3"}
    health = (inspected.get("HealthCheck") or inspected.get("Healthcheck") or config["Healthcheck"])["Test"]
    assert health[:1] == ["NONE" if target == "rotator" else "CMD"], "without a shell"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    for name in ("title", "description", "source", "revision", "licenses"):
        assert labels[f"org.opencontainers.image.{name}"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_contains_what_it_runs_and_nothing_that_builds_or_tests_it(target: str, engine: Engine) -> None:
    code = """
import json, os, shutil, sys
from importlib.metadata import distributions
files = [os.path.join(folder, name) for folder, _, names in os.walk("/opt/keypulse") for name in names]
own = sum(os.lstat(file).st_size for file in files)
part = "/tests/", "/test/", "/testing/", "/pip/"
bad = [f for f in files if any(p in f for p in part) or f.endswith((".lock", ".whl"))]
there = [d for d in ("/src", "/wheel", "/install", "/data", "/opt/build", "/root/.cache") if os.path.exists(d)]
ours = [path for path in sys.path if path.startswith("/opt/")]
names = sorted(found.metadata["Name"].lower().replace("_", "-") for found in distributions(path=ours))
print(json.dumps([own, bad, there, names, shutil.which("gcc")]))
"""
    out = engine.out("run", "--rm", *strict(engine)[:4], "--entrypoint=python3", image(target), "-c", code)
    own, bad, there, names, compiler = json.loads(out)
    extras = {"relay": ("apprise", "charts"), "rotator": ("kms-inventory",), "backend": ("transit",)}
    locks = (target, *extras.get(target, ()))
    lock = "".join((ROOT / f"requirements/{name}.lock").read_text() for name in locks)
    assert bad == []
    assert there == []
    assert compiler is None
    assert own < OWN_MEGABYTES.get(target, 200) * 1_000_000
    assert {name for name in names if f"{name}==" not in lock.lower()} == {"keypulse"}


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "stand-ins"])
def test_a_command_runs_without_a_shell_a_network_or_a_folder_to_write_to(target: str, engine: Engine) -> None:
    done = engine.run("run", "--rm", *strict(engine), image(target), "--help")
    assert done.returncode == 0, done.stderr
    assert "keypulse" in done.stdout


@contextmanager
def running(engine: Engine, *arguments: str) -> Iterator[str]:
    container = engine.out("run", "--detach", *arguments)
    try:
        yield container
    finally:
        engine.run("rm", "--force", "--volumes", container)


def until_healthy(engine: Engine, container: str) -> None:
    deadline = time.monotonic() + 60
    health = engine.inspected(container)["Config"]["Healthcheck"]["Test"][1:]
    while engine.run("exec", container, *health).returncode != 0:
        assert time.monotonic() < deadline, engine.run("logs", container).stderr
        time.sleep(0.2)  # bounded, until another process is there


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    kms = "{key: projects/a/locations/b/keyRings/c/cryptoKeys/d, endpoint: '127.0.0.1:9010', insecure: true}"
    channels = "default_channels: [log]\nchannels: {log: {kind: log}}\n"
    database = "database: sqlite:////var/lib/keypulse/data.db\n"
    (tmp_path / "token").write_text("a-token-of-the-tests\n")
    (tmp_path / "relay.yml").write_text(f"auth: {{bearer_token_file: token}}\n{database}{channels}")
    (tmp_path / "exporter.yml").write_text(f"service: a\ntargets: [{{name: a, {kms[1:]}]\n")
    (tmp_path / "backend.yml").write_text(f"{database}kms: {kms}\nlocal_key_file: /var/lib/keypulse/local.key\n")
    for file in tmp_path.iterdir():
        file.chmod(0o644)
    return tmp_path


@pytest.mark.parametrize("target", ["exporter", "relay", "backend", "emulator"])
def test_a_server_is_healthy_without_a_shell_and_stops_clean(target: str, engine: Engine, config: Path) -> None:
    mounts = (f"--volume={config}:/etc/keypulse:ro", "--volume=/var/lib/keypulse")
    given = EMULATOR if target == "emulator" else ()
    with running(engine, *strict(engine), *mounts, image(target), *given) as container:
        until_healthy(engine, container)
        began = time.monotonic()
        engine.out("stop", "--time", "60", container)
        assert time.monotonic() - began < 45, "it would not be SIGTERM that ends it"
        assert engine.inspected(container)["State"]["ExitCode"] == 0


def test_a_server_that_hangs_is_not_healthy(engine: Engine, config: Path) -> None:
    mounts = (f"--volume={config}:/etc/keypulse:ro", "--volume=/var/lib/keypulse")
    with running(engine, *strict(engine), *mounts, image("relay")) as container:
        until_healthy(engine, container)
        pid = engine.inspected(container)["State"]["Pid"]
        os.kill(pid, signal.SIGSTOP)
        health = engine.inspected(container)["Config"]["Healthcheck"]["Test"][1:]
        checked = engine.run("exec", container, *health)
        os.kill(pid, signal.SIGCONT)
    assert checked.returncode == 1
    assert "no answer in time" in checked.stderr
