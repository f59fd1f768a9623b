"""An SQLite outbox whose disk is full, whose file is locked, whose folder is read-only."""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shared.sql import database_url
from tests.faults.alertmanager import Alertmanager
from tests.faults.conftest import Scenarios
from tests.faults.disk import Disk, Quota, tmpfs
from tests.faults.scenario import Scenario, meanwhile
from tests.relay.served_relay import until

PRIVILEGE = "-dac_override,-dac_read_search"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture(params=["tmpfs", pytest.param("quota", marks=pytest.mark.played)])
def disk(request: pytest.FixtureRequest, folder: Path) -> Iterator[Disk]:
    if request.param == "quota":
        yield Quota(folder)
    else:
        with tmpfs(folder) as mounted:
            yield mounted


async def test_full_disk(folder: Path, disk: Disk, scenario: Scenarios) -> None:
    trial = scenario(database_url.create_sqlite_url(folder / "relay.db"))
    async with trial.relay() as relay:
        alertmanager = _alertmanager(trial, relay.url)
        async with meanwhile(alertmanager.play(trial.histories(groups=6, length=12))) as playing:
            await until(lambda: len(alertmanager.accepted) > 6)
            disk.fill(relay)
            await relay.answers(503, "/-/ready")
            await until(lambda: alertmanager.refusals["503"] > 6)
            disk.free(relay)
            await relay.answers(200, "/-/ready")
            await playing
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.late == []


@pytest.mark.played
async def test_locked_database(folder: Path, scenario: Scenarios) -> None:
    trial = scenario(database_url.create_sqlite_url(folder / "relay.db"))
    async with trial.relay() as relay:
        alertmanager = _alertmanager(trial, relay.url)
        async with meanwhile(alertmanager.play(trial.histories(groups=3, length=8))) as playing:
            await until(lambda: len(alertmanager.accepted) > 3)
            with closing(sqlite3.connect(folder / "relay.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                await relay.answers(503, "/-/ready")
                await until(lambda: alertmanager.refusals["503"] > 2)
            await relay.answers(200, "/-/ready")
            await playing
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.late == []


@pytest.mark.played
async def test_read_only_folder(folder: Path, scenario: Scenarios) -> None:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv that takes the privilege away")
    without_privilege = ("setpriv", f"--bounding-set={PRIVILEGE}", f"--inh-caps={PRIVILEGE}")
    trial = scenario(database_url.create_sqlite_url(folder / "relay.db"))
    async with trial.relay(through=without_privilege if os.geteuid() == 0 else ()) as relay:
        alertmanager = _alertmanager(trial, relay.url)
        async with meanwhile(alertmanager.play(trial.histories(groups=3, length=8))) as playing:
            await until(lambda: len(alertmanager.accepted) > 3)
            # What is open may be written on. A lock makes the relay close its files; when it opens them again, it may
            # only read them.
            with closing(sqlite3.connect(folder / "relay.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                _set_modes(folder, 0o400, 0o500)
                await until(lambda: "outbox cannot commit" in relay.log)
                await relay.answers(503, "/-/ready")
            refused = alertmanager.refusals["503"]
            await until(lambda: alertmanager.refusals["503"] > refused + 6)
            assert await relay.answer("/-/ready") == 503
            _set_modes(folder, 0o600, 0o700)
            await relay.answers(200, "/-/ready")
            await playing
        verdict = await trial.concluded(alertmanager)
        await relay.stop()
    assert verdict.late == []
    assert "readonly" in relay.log


def _alertmanager(trial: Scenario, url: str) -> Alertmanager:
    return Alertmanager([url], trial.random("alertmanager"))


def _set_modes(folder: Path, of_files: int, of_folder: int) -> None:
    folder.chmod(0o700)
    for file in folder.iterdir():
        file.chmod(of_files)
    folder.chmod(of_folder)
