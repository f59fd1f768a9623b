"""A key of a real Transit is configured, probed, inspected and shown as one of Cloud KMS is."""

import re
import time
from pathlib import Path

import pytest
import yaml

from services.exporter.config import ExporterSettings
from services.exporter.doctor import open_checks
from shared.check import CheckError
from shared.config.settings import load_settings
from tests.bao import Bao, Transit
from tests.exporter.running_exporter import scraped

STATES = ("usable", "decrypt_only", "disabled", "destroyed")


@pytest.fixture
def mounted(shared_bao: Bao) -> Transit:
    return shared_bao.mount()


def read_settings(mounted: Transit, folder: Path, interval: str = "10s", **auth: bool) -> ExporterSettings:
    target = {"name": "ledger-kek", "canary_dir": str(folder), **mounted.build_settings(folder)}
    target["auth"] |= auth
    configuration = {
        "listen": "127.0.0.1:0",
        "service": "backend",
        "probe": {"interval": interval, "timeout": interval},
        "targets": [target],
    }
    file = folder / "exporter.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return load_settings(ExporterSettings, file)


async def test_versions_floor_permissions_rotation_and_the_token_s_end_are_metrics(
    mounted: Transit, tmp_path: Path
) -> None:
    for _ in range(3):
        mounted.change("keys/ledger/rotate")
    mounted.change("keys/ledger/config", min_decryption_version=3, min_encryption_version=3, auto_rotate_period="24h")
    mounted.change("keys/ledger/trim", min_available_version=2)
    async with scraped(read_settings(mounted, tmp_path)) as scrape:
        values = await scrape.wait_for("kms_key_primary_version backend ledger-kek", 4)
        await scrape.wait_for("kms_probe_success backend ledger-kek", 1)
        await scrape.wait_for("kms_wrong_aad_refused backend ledger-kek", 1)
        board = await scrape.page()
        steps = await scrape.page("/probe?target=ledger-kek&debug=true")
        mounted.change("keys/ledger/config", deletion_allowed=True)
    states = {state: values[f"kms_key_versions backend {state} ledger-kek"] for state in STATES}
    assert states == {"usable": 1, "decrypt_only": 1, "disabled": 1, "destroyed": 1}
    for permission in ("encrypt", "decrypt", "read"):
        assert values[f"kms_key_permission {permission} backend ledger-kek"] == 1
    rotation = values["kms_key_next_rotation_timestamp_seconds backend ledger-kek"] - time.time()
    assert rotation == pytest.approx(86_400, abs=60)
    assert re.search(r"<th scope=\"row\">4 .*?<td>SOFTWARE</td><td>.*?ago", board), "the version with its date"
    assert values["kms_credential_expiry_timestamp_seconds Transit token"] - time.time() == pytest.approx(3600, abs=60)
    assert values[f"kms_target_info  transit:{mounted.name}/ledger transit backend ledger-kek"] == 1
    assert values["kms_key_inspection_problems backend ledger-kek"] == 0
    reads = {
        each: values[f"kms_operations_total {each} backend ledger-kek"] for each in ("get_key", "test_permissions")
    }
    assert reads == {"get_key": 1, "test_permissions": 2}  # which reads the key, too
    assert "google" not in board.lower()
    assert "ok: the plaintext is the one that was encrypted" in steps
    assert "checksum" not in steps, "Transit's answers have none"
    async with scraped(read_settings(mounted, tmp_path)) as scrape:
        await scrape.wait_for("kms_key_inspection_problems backend ledger-kek", 1)
        assert "deletion_allowed is true: one request deletes the key" in await scrape.page()


async def test_a_floor_that_shuts_a_version_out_is_a_lost_canary_and_a_soft_deleted_key_has_its_commands_on_the_board(
    mounted: Transit, tmp_path: Path
) -> None:
    settings = read_settings(mounted, tmp_path, "2s")
    async with scraped(settings) as scrape:
        await scrape.wait_for("kms_key_versions_without_canary backend ledger-kek", 0)
    mounted.change("keys/ledger/rotate")
    mounted.change("keys/ledger/config", min_decryption_version=2)
    async with scraped(settings) as scrape:
        await scrape.wait_for("kms_canary_success key_disabled backend ledger-kek 1", 0)
        mounted.bao.call("DELETE", f"{mounted.name}/keys/ledger/soft-delete")
        failure = "kms_probe_failure_info soft_deleted encrypt key_disabled backend ledger-kek"
        await scrape.wait_for(failure, 1)
        command = f"bao write -f {mounted.name}/keys/ledger/soft-delete-restore"
        assert command in re.sub("<[^>]*>", "", await scrape.page())
        mounted.bao.run(command)
        await scrape.wait_for("kms_probe_success backend ledger-kek", 1)


async def test_a_token_that_should_have_been_renewed_is_on_the_board(mounted: Transit, tmp_path: Path) -> None:
    settings = read_settings(mounted, tmp_path, renew=False)
    token = (tmp_path / f"{mounted.name}.token").read_text()
    mounted.bao.call("POST", "auth/token/renew-self", {"increment": "890s"}, token=token)
    async with scraped(settings) as scrape:
        await scrape.wait_for("kms_key_inspection_problems backend ledger-kek", 0)
        page = re.sub("<[^>]*>", "", await scrape.page())
    assert re.search(r"Unless it is renewed, the Transit token ends\s+in 1[45] min", page), "of an hour"


async def test_doctor_tries_the_key_and_says_when_the_token_ends(mounted: Transit, tmp_path: Path) -> None:
    answers = {}
    async with open_checks(read_settings(mounted, tmp_path)) as checks:
        mounted.set_policy(decrypt=["deny"], encrypt=["update", "create"])
        for check in checks:
            try:
                answers[check.name.rpartition(") ")[2]] = await check.run()
            except CheckError as error:
                answers[check.name.rpartition(") ")[2]] = str(error)
    assert answers["connection"].startswith("dns in ")
    assert answers["permission encrypt"] == answers["permission read"] == "granted"
    assert "`update` on encrypt and decrypt" in answers["permission decrypt"]
    assert "role_missing" in answers["round trip"]
    assert answers["no permission create"] == (
        "the account has it: an encryption would make a deleted key anew, and succeed; take `create` from it"
    )
    assert answers["Transit token"].startswith("ends in 1.0 hours")
