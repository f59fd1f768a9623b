"""`keypulse-rotator doctor`: a keyring that works, and one that another KMS key wraps."""

from pathlib import Path

from services.rotator.doctor import open_checks
from shared.check import format_line
from shared.process.doctor import run_doctor
from tests.rotator.keyring_to_rotate import KEY, Rotated


async def test_a_keyring_that_works_passes_every_check_and_stays_as_it_is(rotated: Rotated) -> None:
    before = await rotated.keys()
    results = await run_doctor(rotated.settings(), open_checks)
    assert [format_line(result) for result in results if not result.is_ok] == []
    assert {result.name: result.detail for result in results}["driver keyring"] == "3 data keys can be read"
    assert await rotated.keys() == before
    assert not (rotated.folder / "state").exists()


async def test_a_keyring_of_another_kms_key_is_named(in_a_file: Rotated) -> None:
    other = {"key": f"{KEY}2", "endpoint": str(in_a_file.kms), "insecure": True}
    results = {result.name: result for result in await run_doctor(in_a_file.settings(kms=other), open_checks)}
    assert not results["kms round trip"].is_ok
    assert results["driver keyring"].detail.startswith(f"data keys are wrapped by {KEY}, which neither `kms` nor")
    moved = in_a_file.settings(kms=other, previous_kms=[{**other, "key": KEY}])
    results = {result.name: result for result in await run_doctor(moved, open_checks)}
    assert results["driver keyring"].is_ok
    assert {name: results[name].is_ok for name in results if name.startswith("previous_kms")} == {
        "previous_kms.0 connection": True,
        "previous_kms.0 permission cloudkms.cryptoKeyVersions.useToDecrypt": True,
    }


async def test_a_folder_that_cannot_be_made_is_named(in_a_file: Rotated, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = in_a_file.settings(state_dir=str(tmp_path / "file" / "state"))
    results = {result.name: result for result in await run_doctor(settings, open_checks)}
    assert not results["state_dir"].is_ok
    assert results["state_dir"].detail == f"{tmp_path}/file is no folder that this user may write to"
