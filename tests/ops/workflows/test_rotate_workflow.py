"""`kms-rotate.yml`, every step of it, dry and for real, against a real backend and a real KMS emulator."""

import asyncio
import json
import shlex
import sqlite3
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from ops.kms_emulator.ciphertext import create_material
from ops.kms_emulator.emulator import Emulator, run_emulator
from services.backend.app import run_backend
from services.backend.config import BackendSettings
from shared.config.settings import Address, load_settings
from shared.http.server import bind_socket, serve
from tests.ops.github.stand_in import REPOSITORY, run_stand_in
from tests.ops.workflows.conftest import WORKFLOWS, NewMachine
from tests.ops.workflows.runner import Runner, Step
from tests.rotator.drivers.sshd import sshd

pytestmark = pytest.mark.played
ROTATE = WORKFLOWS / "kms-rotate.yml"
KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TOKEN = "a-token-of-the-admin-api"
BOTH = {"dry_run": False, "rotation_type": "both", "driver": "admin_api"}
RUNS = ("Wrap all data keys under the primary version", "New data key")
ANY_TIME = {"KEYPULSE_ROTATOR__NEW_DEK_MIN_AGE": "1ms", "KEYPULSE_ROTATOR__PRIMARY_CHECK_INTERVAL": "1ms"}


@dataclass
class Deployment:
    """A backend with one data key, under version 1 of a KMS key whose primary version is 2."""

    url: str
    config: Path
    kms: Emulator

    def reached(self, driver: str) -> dict[str, str]:
        """What an operator writes into ops/rotator/DRIVER.yml, as environment variables."""
        command = [sys.executable, "-m", "services.backend", "admin", "--config", str(self.config)]
        values = {
            "admin_api": {"URL": self.url},
            "command": {"ARGV": json.dumps(command)},
            "sql": {"DATABASE": f"sqlite:///{self.config.parent}/backend.db"},
        }[driver]
        kms = {"KEY": KEY, "ENDPOINT": str(self.kms.address), "INSECURE": "true"}
        return {
            **{f"KEYPULSE_ROTATOR__DRIVER__{key}": value for key, value in values.items()},
            **{f"KEYPULSE_ROTATOR__KMS__{key}": value for key, value in kms.items()},
        }

    async def keys(self) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/admin/crypto/keys", headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()
            found: list[dict[str, Any]] = await answer.json()
            return found


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    (tmp_path / "admin_token").write_text(TOKEN)
    async with run_emulator(keys=[KEY]) as emulator:
        kms = {"provider": "gcp", "key": KEY, "endpoint": str(emulator.address), "insecure": True}
        config = tmp_path / "backend.yml"
        document = {"database": "sqlite:///backend.db", "kms": kms, "local_key_file": "local.key"}
        with bind_socket(Address("127.0.0.1", 0)) as free:
            listen = Address(*free.getsockname())
        document |= {"listen": str(listen)}  # `keypulse-backend admin` looks for the backend there
        document |= {"admin": {"token_file": "admin_token"}, "kms_check_interval": "50ms"}
        config.write_text(yaml.safe_dump(document))
        async with run_backend(load_settings(BackendSettings, config)) as app, serve(app, listen) as address:
            now = emulator.store.clock()
            await emulator.store.update_key(
                KEY, lambda key: key.with_new_version(create_material(), now).with_primary(2, now)
            )
            yield Deployment(f"http://{address}", config, emulator)


@dataclass
class Job:
    """A job that has ended."""

    runner: Runner
    steps: list[Step]

    @property
    def outcomes(self) -> dict[str, str]:
        return {step.name: step.outcome for step in self.steps}

    @property
    def printed(self) -> str:
        return "\n".join(f"# {step.name}\n{step.output}" for step in self.steps if step.output)

    @property
    def remaining_files(self) -> list[Path]:
        """The files that the job uploads."""
        (paths,) = (step.using["path"].split() for step in self.steps if step.name.startswith("Keep"))
        found = [file for path in paths for file in [*self.runner.workspace.glob(path)]]
        return [file for path in found for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


@dataclass
class Ssh:
    """What leads to a host."""

    argv: list[str]
    key: str
    host_keys: str


async def run(
    machine: NewMachine,
    deployment: Deployment,
    inputs: dict[str, Any],
    ssh: Ssh | None = None,
    *,
    has_smoke_tests: bool = True,
    **environment: str,
) -> Job:
    with run_stand_in() as github:
        api = {"GITHUB_API_URL": github.url, "GITHUB_REPOSITORY": REPOSITORY}
        variables = {"KEYPULSE_BASE_URL": deployment.url} if has_smoke_tests else {}
        secrets = {"KEYPULSE_ADMIN_TOKEN": TOKEN, "KEYPULSE_PGPASS": "*:*:*:*:a-password"}
        if ssh:
            variables |= {"KEYPULSE_DRIVER": "command", "KEYPULSE_SSH_KNOWN_HOSTS": ssh.host_keys}
            secrets |= {"KEYPULSE_SSH_KEY": ssh.key}
            api |= {"KEYPULSE_ROTATOR__DRIVER__ARGV": json.dumps(ssh.argv)}
        driver = "command" if ssh else inputs.get("driver", "admin_api")
        runner = machine(
            inputs=inputs,
            variables=variables,
            secrets=secrets,
            environment={**deployment.reached(driver), **ANY_TIME, **api, **environment},
        )
        job = Job(runner, await asyncio.to_thread(runner.run, ROTATE))
    assert {path.name for path in runner.temp.iterdir()} <= {"keypulse"}, "no secret is left"
    assert TOKEN not in job.printed + runner.summary
    assert "a-password" not in job.printed + runner.summary
    return job


def wrapped(deployment: Deployment) -> list[bytes]:
    with closing(sqlite3.connect(deployment.config.parent / "backend.db")) as database:
        return [row[0] for row in database.execute("SELECT wrapped FROM data_keys")]


def shape(keys: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return sorted((key["status"], key["kek_version"]) for key in keys)


async def test_a_dry_run_changes_nothing_and_says_what_it_would_do(machine: NewMachine, deployment: Deployment) -> None:
    before = await deployment.keys()
    job = await run(machine, deployment, {**BOTH, "dry_run": True})
    assert job.runner.status == "success", job.printed
    assert job.outcomes["Finish what an earlier job left"] == "skipped"
    assert job.outcomes["The environment asks for an approval"] == "skipped"
    assert await deployment.keys() == before
    assert "run --type new-dek --dry-run" in job.runner.summary
    assert "run --type rewrap-kek --dry-run" in job.runner.summary
    assert not any("backup" in file.name for file in job.remaining_files)


@pytest.mark.parametrize("driver", ["schedule", "command", "sql"])
async def test_a_rotation_runs_to_the_end_with_each_driver(
    machine: NewMachine, deployment: Deployment, driver: str
) -> None:
    before = wrapped(deployment)
    inputs = (
        {} if driver == "schedule" else {**BOTH, "driver": driver}
    )  # on schedule there are none, and it is admin_api
    job = await run(machine, deployment, inputs)
    assert job.runner.status == "success", job.printed
    assert {job.outcomes[name] for name in RUNS} == {"success"}
    assert shape(await deployment.keys()) == [("active", "2"), ("retired", "2")]
    assert job.runner.summary.count("everything can be read") >= 2
    assert sum("backup" in str(file) for file in job.remaining_files) >= 2
    for secret in {*before, *wrapped(deployment)}:
        assert not any(
            form in file.read_bytes() for form in (secret, b64encode(secret)) for file in job.remaining_files
        )
    assert {"smoke-before.xml", "smoke-after.xml"} <= {file.name for file in job.remaining_files}
    if driver == "schedule":
        second = await run(machine, deployment, inputs, KEYPULSE_ROTATOR__NEW_DEK_MIN_AGE="1d")
        assert second.runner.status == "success", second.printed
        assert second.runner.summary.count("nothing to do") >= 2
        assert shape(await deployment.keys()) == [("active", "2"), ("retired", "2")]


async def test_on_schedule_the_variables_lead_by_ssh_to_the_host_that_is_known_and_to_no_other(
    machine: NewMachine, deployment: Deployment, tmp_path: Path
) -> None:
    folder = tmp_path / "sshd"
    folder.mkdir()
    async with sshd(folder) as (*_, port, _, _, _, _, _, _, host):
        remote = shlex.join([sys.executable, "-m", "services.backend", "admin", "--config", str(deployment.config)])
        there = ["ssh", "-p", port, host, remote]
        key, host_keys = (folder / "user_key").read_text(), (folder / "known_hosts").read_text()
        other = await run(machine, deployment, {}, Ssh(there, key, host_keys.replace("127.0.0.1", "127.0.0.2")))
        assert other.outcomes["Plan"] == "failure"
        assert "Host key verification failed" in other.printed
        assert "OPENSSH PRIVATE KEY" not in other.printed
        job = await run(machine, deployment, {}, Ssh(there, key, host_keys))
    assert job.runner.status == "success", job.printed
    assert shape(await deployment.keys()) == [("active", "2"), ("retired", "2")]


async def test_a_data_key_that_cannot_be_unwrapped_fails_each_job_and_without_smoke_tests_the_others_are_rotated(
    machine: NewMachine, deployment: Deployment
) -> None:
    corrupt = ("retired", "1")
    with closing(sqlite3.connect(deployment.config.parent / "backend.db", isolation_level=None)) as database:
        database.execute(
            "INSERT INTO data_keys "
            "SELECT 'corrupt', 'retired', zeroblob(64), kek, 1, algorithm, fingerprint, created_at FROM data_keys"
        )
        job = await run(machine, deployment, BOTH)
        assert [name for name, outcome in job.outcomes.items() if outcome == "failure"] == ["Smoke test before"]
        assert "data keys that cannot be unwrapped: 1" in job.printed
        assert {job.outcomes[name] for name in RUNS} == {"skipped"}
        assert shape(await deployment.keys()) == [("active", "1"), corrupt]

        job = await run(machine, deployment, BOTH, has_smoke_tests=False)
        outcomes = job.outcomes
        assert [name for name, outcome in outcomes.items() if outcome == "failure"] == [*RUNS], job.printed
        assert {outcomes[name] for name in ("Verify", "Smoke test after")} == {"skipped"}
        assert {outcomes[name] for name in ("Status", "Keep the backup and the reports")} == {"success"}
        assert "✗ keypulse-rotator run: failed" in job.runner.summary
        assert "| corrupt | " in job.runner.summary
        assert sum("backup" in str(file) for file in job.remaining_files) >= 1
        assert shape(await deployment.keys()) == [("active", "2"), corrupt, ("retired", "2")]

        now = deployment.kms.store.clock()
        await deployment.kms.store.update_key(
            KEY, lambda key: key.with_new_version(create_material(), now).with_primary(3, now)
        )
        inputs = {**BOTH, "rotation_type": "rewrap-kek"}
        job = await run(machine, deployment, inputs, has_smoke_tests=False)
        assert job.runner.status == "failure"
        assert job.outcomes["New data key"] == "skipped"
        assert shape(await deployment.keys()) == [("active", "3"), corrupt, ("retired", "3")]

        database.execute("DELETE FROM data_keys WHERE id = 'corrupt'")
    job = await run(machine, deployment, inputs)
    assert job.runner.status == "success", job.printed
    assert shape(await deployment.keys()) == [("active", "3"), ("retired", "3")]


async def test_a_wrong_token_is_one_sentence_and_nothing_is_changed(
    machine: NewMachine, deployment: Deployment
) -> None:
    before = await deployment.keys()
    (deployment.config.parent / "admin_token").write_text("another-admin-token")
    job = await run(machine, deployment, BOTH)
    assert job.outcomes["Plan"] == "failure"
    assert {job.outcomes[name] for name in RUNS} == {"skipped"}
    (deployment.config.parent / "admin_token").write_text(TOKEN)
    assert await deployment.keys() == before
