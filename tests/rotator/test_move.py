"""Every data key moves from Cloud KMS to a real Transit and back, and no key that is still needed is given up."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.rotator.doctor import open_checks
from services.rotator.inspection import check_backup, run_verification, show_plans
from services.rotator.report import CommandOutcome, CommandReport, RotatorError, format_markdown
from services.rotator.retirement import retire_version
from services.rotator.runner import restore_backup, resume, rollback, run
from shared.config.errors import ConfigurationError
from shared.keyring.administration import AdministrationError, RotationState, RotationType
from shared.process.doctor import run_doctor
from tests.bao import Bao, Transit, running_bao
from tests.key_versions import Versions
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated, data_key_id
from tests.rotator.served_keyring import Served
from tests.rotator.test_resume import left_in_the_middle

REWRAP = RotationType.REWRAP_KEK


@pytest.fixture
def mounted(shared_bao: Bao) -> Transit:
    return shared_bao.mount()


@pytest.fixture
def on_google(in_a_file: Rotated, mounted: Transit, tmp_path: Path) -> Rotated:
    """Three data keys, wrapped by Cloud KMS; a key of Transit unwraps, too."""
    return replace(in_a_file, transit=mounted.build_settings(tmp_path))


@pytest.fixture
def on_transit(on_google: Rotated) -> Rotated:
    """The same keyring, whose data keys are to move to Transit."""
    return replace(on_google, is_on_transit=True)


async def wraps(rotated: Rotated) -> set[tuple[str, str]]:
    return {key.wrapped.by for key in (await rotated.keys()).values()}


async def plan(rotated: Rotated) -> CommandReport:
    return await rotated.do(show_plans, (REWRAP,))


def needs(report: CommandReport) -> Mapping[str, tuple[str, ...]]:
    return {each.kek: each.needed_by for each in report.previous_keys}


async def test_every_data_key_moves_and_back_and_the_plan_says_what_still_needs_the_previous_key(
    on_google: Rotated, on_transit: Rotated, mounted: Transit
) -> None:
    before, transit = await on_google.keys(), f"transit:{mounted.name}/ledger"
    assert needs(await plan(on_google)) == {transit: ()}
    planned = await plan(on_transit)
    assert planned.plans[0].summary.startswith(f"3 data keys (3 by version 1 of {KEY}) to be re-wrapped by version 1")
    assert needs(planned) == {KEY: ("3 data keys and 6 records",)}
    assert f"**previous_kms**: {KEY} is needed by 3 data keys and 6 records" in format_markdown(planned, "rotator.yml")
    assert (await on_transit.do(run, REWRAP)).outcome is CommandOutcome.DONE
    assert await wraps(on_transit) == {(transit, "1")}
    planned = await plan(on_transit)
    assert planned.outcome is CommandOutcome.NOTHING_TO_DO
    async with on_transit.session() as session:
        ((file, header),) = session.backups.list_backups()
    assert (header.kek, header.other_keks, needs(planned)[KEY]) == (transit, (KEY,), (f"the backup {file}",))
    assert (await on_transit.do(rollback)).outcome is CommandOutcome.DONE
    assert await on_transit.keys() == before
    await on_transit.do(run, REWRAP)
    assert (await on_transit.do(partial(run_verification, full=True))).outcome is CommandOutcome.DONE
    assert (await on_google.do(run, REWRAP)).outcome is CommandOutcome.DONE
    assert await wraps(on_google) == {(KEY, "1")}
    assert await on_google.broken() == []
    async with on_google.session() as session:
        for file, _ in session.backups.list_backups():
            file.unlink()
    assert needs(await plan(on_google)) == {transit: ()}
    assert f"nothing needs {transit} any more, so it may go" in format_markdown(await plan(on_google), "rotator.yml")


async def test_a_backup_of_before_the_move_restores_after_it_and_nothing_needs_the_previous_key_again(
    on_google: Rotated, on_transit: Rotated, new_version: NewVersion
) -> None:
    await new_version()
    await on_google.do(run, REWRAP)  # whose backup is encrypted by Cloud KMS
    async with on_google.session() as session:
        ((file, _),) = session.backups.list_backups()
    await on_transit.do(run, REWRAP)
    (moved,) = await wraps(on_transit)
    await on_transit.execute("UPDATE data_keys SET wrapped = x'00' WHERE id = :id", id=data_key_id(0))
    await on_transit.execute("DELETE FROM data_keys WHERE id = :id", id=data_key_id(1))
    assert (await on_transit.do(check_backup, file.name)).problems[0].id == data_key_id(1)
    restored = await on_transit.do(restore_backup, file.name)
    assert (restored.outcome, restored.summary) == (
        CommandOutcome.DONE,
        "2 data keys as in the backup again; everything can be read",
    )
    assert (await wraps(on_transit), await on_transit.broken()) == ({moved}, [])


async def test_a_move_that_was_left_in_the_middle_is_readable_and_goes_on_in_either_direction(
    on_google: Rotated, on_transit: Rotated
) -> None:
    before = await on_google.keys()
    await left_in_the_middle(on_transit)
    assert {kek for kek, _ in await wraps(on_transit)} == {KEY, f"transit:{on_transit.transit['mount']}/ledger"}  # type: ignore[index]
    assert await on_transit.broken() == []
    # Both keys have a version 1, so that the target of the rotation does not say which of them it is.
    assert (await on_google.do(resume)).outcome is CommandOutcome.DONE
    assert await wraps(on_google) == {(KEY, "1")}
    assert (await on_google.do(rollback)).outcome is CommandOutcome.DONE
    assert await on_google.keys() == before
    await left_in_the_middle(on_transit)
    assert (await on_transit.do(resume)).outcome is CommandOutcome.DONE
    assert (len(await wraps(on_transit)), await on_transit.broken()) == (1, [])


@pytest.mark.parametrize("driver", ["admin_api", "command"])
async def test_a_backend_moves_its_data_keys_by_its_own_previous_kms_while_records_are_written(
    in_a_file: Rotated, mounted: Transit, tmp_path: Path, driver: str
) -> None:
    transit, url = mounted.build_settings(tmp_path), URL.create("sqlite", database=str(tmp_path / "served.db"))
    served = Served(url, in_a_file.kms, tmp_path, transit, driver=driver, home=tmp_path)
    await served.fill(2)
    moved = replace(served, is_on_transit=True)
    assert needs(await plan(moved))[KEY][-1].startswith("2 data keys and ")
    assert (await moved.do(run, REWRAP)).outcome is CommandOutcome.DONE
    assert (await wraps(moved), await moved.broken()) == ({(f"transit:{mounted.name}/ledger", "1")}, [])


async def test_a_version_is_not_retired_while_the_backup_of_a_move_may_need_it(
    on_google: Rotated, on_transit: Rotated, new_version: NewVersion
) -> None:
    await on_transit.do(run, REWRAP)  # whose backup is encrypted by Transit, and has rows of Cloud KMS
    await new_version()
    await on_google.do(run, REWRAP)
    async with on_google.session() as session:
        (file, _), (later, _) = session.backups.list_backups()
        later.unlink()
        with pytest.raises(RotatorError, match="version 1 is needed by the backup") as refused:
            await retire_version(session, "1")
        assert str(file) in refused.value.message
        file.unlink()
        with pytest.raises(RotatorError, match="is needed by 2 backups that are not in"):
            await retire_version(session, "1")
        assert (await retire_version(session, "1", 2)).outcome is CommandOutcome.DONE


async def test_a_data_key_whose_kms_key_no_setting_names_is_told_in_one_sentence_and_left_as_it_is(
    on_transit: Rotated,
) -> None:
    before, alone = await on_transit.keys(), dict[str, Any](previous_kms=[])
    sentence = f"3 data keys wrapped by {KEY}, which neither `kms` nor `previous_kms` of the service names"
    async with on_transit.session(**alone) as session:
        (planned,) = (await show_plans(session, (REWRAP,))).plans
        assert (planned.data_keys, [each.partition(": ")[0] for each in planned.excluded]) == (0, [sentence])
        assert (await run(session, REWRAP)).outcome is CommandOutcome.NOTHING_TO_DO
        assert any(sentence in line for line in session.progress.lines)  # type: ignore[attr-defined]
    assert await on_transit.keys() == before


async def test_a_previous_key_in_another_spelling_is_counted_read_moved_and_put_back(
    on_google: Rotated, on_transit: Rotated
) -> None:
    await on_google.execute("UPDATE data_keys SET kek = :kek WHERE id = :id", kek=f"gcp-kms://{KEY}", id=data_key_id(0))
    before = await on_google.keys()
    assert needs(await plan(on_transit)) == {KEY: ("3 data keys and 6 records",)}
    assert [each.detail for each in await run_doctor(on_transit.settings(), open_checks) if not each.is_ok] == []
    assert (await on_transit.do(partial(run_verification, full=True))).outcome is CommandOutcome.DONE
    assert (await on_transit.do(run, REWRAP)).outcome is CommandOutcome.DONE
    assert (len(await wraps(on_transit)), await on_transit.broken()) == (1, [])
    async with on_transit.session() as session:
        ((file, _),) = session.backups.list_backups()
    assert (await on_transit.do(rollback)).outcome is CommandOutcome.DONE
    assert await on_transit.keys() == before
    await on_transit.execute("DELETE FROM data_keys WHERE id = :id", id=data_key_id(0))
    assert (await on_transit.do(restore_backup, file.name)).outcome is CommandOutcome.DONE
    assert (await on_transit.keys())[data_key_id(0)].wrapped.kek == f"transit:{on_transit.transit['mount']}/ledger"  # type: ignore[index]


async def test_a_data_key_of_a_kms_key_that_no_setting_names_is_never_called_readable(
    in_a_file: Rotated, new_version: NewVersion
) -> None:
    await new_version()
    other = f"{KEY}2"
    await in_a_file.execute("UPDATE data_keys SET kek = :kek WHERE id = :id", kek=other, id=data_key_id(0))
    reports = {"run": await in_a_file.do(run, REWRAP)}
    async with in_a_file.session() as session:
        ((file, _),) = session.backups.list_backups()
    reports |= {
        "verify": await in_a_file.do(partial(run_verification, full=True)),
        "restore-check": await in_a_file.do(check_backup, file.name),
        "restore": await in_a_file.do(restore_backup, file.name),
        "rollback": await in_a_file.do(rollback),
    }
    sentence = f"it is wrapped by {other}, which neither `kms` nor `previous_kms` names: add it to `previous_kms`"
    assert {
        name: (each.outcome, [(problem.id, problem.error) for problem in each.problems])
        for name, each in reports.items()
    } == dict.fromkeys(reports, (CommandOutcome.FAILED, [(data_key_id(0), sentence)]))
    assert [
        name for name, each in reports.items() if "everything" in each.summary or "can be rest" in each.summary
    ] == []


async def test_a_previous_key_that_is_gone_is_told_of_its_data_keys_and_blocks_nothing_else(
    on_transit: Rotated, emulator: Emulator
) -> None:
    await on_transit.do(run, REWRAP)
    denied = emulator.faults.add(EmulatorFault(kind="status", status="PERMISSION_DENIED"))
    with pytest.raises((AdministrationError, RotatorError), match=re.escape(f"(permission_denied): {KEY}: ")):
        await on_transit.do(rollback)
    emulator.faults.remove(denied)
    manager = emulator.faults.add(EmulatorFault(kind="cause", cause="ekm_not_found"))
    with pytest.raises((AdministrationError, RotatorError), match="ekm_not_found"):
        await on_transit.do(rollback)
    emulator.faults.remove(manager)
    emulator.faults.add(EmulatorFault(kind="status", status="NOT_FOUND"))
    undone = await on_transit.do(rollback)
    assert undone.outcome is CommandOutcome.FAILED
    assert {each.error for each in undone.problems} == {
        f"its former wrapped form cannot be unwrapped: KMS: key_not_found (version 1 of {KEY}); it was left as it is"
    }
    assert undone.rotation is not None
    assert undone.rotation.state is RotationState.ROLLED_BACK
    emulator.faults.clear()
    assert (len(await wraps(on_transit)), await on_transit.broken()) == (1, [])


async def test_a_rollback_without_the_setting_of_the_previous_key_changes_nothing_and_is_repeated_with_it(
    on_google: Rotated, on_transit: Rotated
) -> None:
    before = await on_google.keys()
    await on_transit.do(run, REWRAP)
    moved = await on_transit.keys()
    with pytest.raises(RotatorError, match="names; name it there, then roll back again") as refused:
        await on_transit.do(rollback, previous_kms=[])
    assert refused.value.next_commands == ("status", "rollback")
    assert await on_transit.keys() == moved
    assert (await on_transit.do(resume)).summary.endswith("is done")
    assert (await on_transit.do(rollback)).outcome is CommandOutcome.DONE
    assert await on_transit.keys() == before


async def test_a_rollback_that_waits_for_a_kms_that_never_lets_it_in_again_ends_without_its_setting(
    on_transit: Rotated, emulator: Emulator
) -> None:
    await on_transit.do(run, REWRAP)
    moved = await on_transit.keys()
    emulator.faults.add(EmulatorFault(kind="status", status="PERMISSION_DENIED"))  # as final for now, and tried once
    with pytest.raises((AdministrationError, RotatorError), match="permission_denied"):
        await on_transit.do(rollback)
    ended = await on_transit.do(rollback, previous_kms=[])
    assert ended.rotation is not None
    assert ended.rotation.state is RotationState.ROLLED_BACK
    assert {each.id for each in ended.problems} == set(moved)
    assert await on_transit.keys() == moved


async def test_nothing_is_called_gone_for_good_while_the_previous_key_is_soft_deleted(
    on_google: Rotated, on_transit: Rotated, mounted: Transit
) -> None:
    await on_transit.do(run, REWRAP)
    before = await on_transit.keys()
    await on_google.do(run, REWRAP)
    mounted.bao.call("DELETE", f"{mounted.name}/keys/ledger/soft-delete")
    with pytest.raises(RotatorError, match=re.escape("soft_deleted (key_disabled)")) as stopped:
        await on_google.do(rollback)
    assert stopped.value.next_commands == ("rollback",)
    with pytest.raises(RotatorError, match="is soft-deleted: nothing can be wrapped by it; restore the key"):
        await plan(on_transit)
    mounted.change("keys/ledger/soft-delete-restore")
    assert (await on_google.do(rollback)).outcome is CommandOutcome.DONE
    assert await on_google.keys() == before


async def test_a_version_is_not_retired_while_a_backup_has_rows_of_the_key_under_another_server(
    on_google: Rotated, on_transit: Rotated, mounted: Transit, tmp_path: Path
) -> None:
    """Where the other name is that of a key of another server, its backup needs no version of ours."""
    await on_transit.do(run, REWRAP)
    await on_google.do(run, REWRAP)
    mounted.change("keys/ledger/rotate")
    assert on_transit.transit
    labelled = replace(on_transit, transit={**on_transit.transit, "server": "x"})
    await labelled.do(run, REWRAP)
    async with labelled.session() as session:
        first, (file, header), last = session.backups.list_backups()
        assert header.other_keks == (f"transit:{mounted.name}/ledger",)
        first[0].unlink()
        last[0].unlink()
    needed = re.escape(f"version 1 is needed by the backup {file}")
    unlabelled, google = on_transit.transit, labelled.describe()["previous_kms"]
    for previous in (google, [*google, unlabelled]):
        with pytest.raises(RotatorError, match=needed):
            await labelled.do(retire_version, "1", previous_kms=previous)
    (tmp_path / "other").mkdir()
    with running_bao(tmp_path / "other") as server:
        server.call("POST", f"sys/mounts/{mounted.name}", {"type": "transit"})
        other = replace(mounted, bao=server)
        other.create_key("ledger")
        settings = other.build_settings(tmp_path / "other")
        retired = await labelled.do(retire_version, "1", 2, previous_kms=[*google, settings])
        assert retired.outcome is CommandOutcome.DONE


@pytest.fixture
async def misnamed(on_transit: Rotated, mounted: Transit) -> Rotated:
    """Cloud KMS wraps the data keys, and they name the key of Transit, which has a newer version by now."""
    await on_transit.execute("UPDATE data_keys SET kek = :kek", kek=f"transit:{mounted.name}/ledger")
    mounted.change("keys/ledger/rotate")
    return on_transit


async def test_a_previous_key_may_not_go_while_a_data_key_is_not_unwrapped_by_the_key_that_it_names(
    misnamed: Rotated,
) -> None:
    perhaps = f"perhaps data key {data_key_id(0)}, which the key that it names does not unwrap: run verify"
    assert needs(await plan(misnamed)) == {KEY: (perhaps,)}
    results = {result.name: result for result in await run_doctor(misnamed.settings(), open_checks)}
    assert [name for name, result in results.items() if not result.is_ok] == ["driver keyring"]
    detail = results["driver keyring"].detail
    assert detail.startswith(f"data key {data_key_id(0)} cannot be read: version 1 does not unwrap it: ")


async def test_while_kms_tells_nothing_doctor_blames_no_key_and_no_previous_key_may_go(
    on_google: Rotated, mounted: Transit, emulator: Emulator
) -> None:
    emulator.faults.add(EmulatorFault(kind="status", operation="Decrypt", status="PERMISSION_DENIED"))
    results = {result.name: result for result in await run_doctor(on_google.settings(), open_checks)}
    assert results["driver keyring"].detail == "3 data keys are there; KMS does not tell whether it unwraps them"
    assert not results["kms round trip"].is_ok
    (needed_by,) = needs(await plan(on_google))[f"transit:{mounted.name}/ledger"]
    assert needed_by == "perhaps data keys; KMS does not tell what it unwraps: role_missing (permission_denied)"


async def test_a_previous_key_may_not_go_while_another_keyring_may_need_it(
    on_google: Rotated, on_transit: Rotated, mounted: Transit, tmp_path: Path
) -> None:
    await on_transit.do(run, REWRAP)
    async with on_transit.session() as session:
        ((file, _),) = session.backups.list_backups()
        file.unlink()
    other = replace(on_google, url=URL.create("sqlite", database=str(tmp_path / "other.db")))
    await other.fill(1)
    await other.execute("UPDATE data_keys SET kek = :kek", kek=f"transit:{mounted.name}/ledger")
    (needed_by,) = needs(await on_transit.do(show_plans, (REWRAP,), other_keyrings=[other.describe()["driver"]]))[KEY]
    assert re.match(f"perhaps data key {data_key_id(0)} in .+, which the key that it names does not", needed_by)


async def test_doctor_names_a_key_that_was_deleted_and_made_anew_under_the_same_name(
    on_google: Rotated, on_transit: Rotated, mounted: Transit
) -> None:
    await on_transit.do(run, REWRAP)
    mounted.change("keys/ledger/config", deletion_allowed=True)
    mounted.bao.call("DELETE", f"{mounted.name}/keys/ledger")
    mounted.create_key("ledger")
    for rotated in (on_transit, on_google):
        results = await run_doctor(rotated.settings(), open_checks)
        assert [result.name for result in results if not result.is_ok] == ["driver keyring"]


@pytest.mark.parametrize("type_", RotationType)
async def test_a_rotation_by_another_key_of_the_same_name_is_refused_before_its_backup(
    misnamed: Rotated, type_: RotationType
) -> None:
    before = await misnamed.keys()
    async with misnamed.session() as session:
        with pytest.raises(RotatorError, match=r"unwraps none of the data keys that name it: .* compare `address` \("):
            await run(session, type_)
        assert session.backups.list_backups() == []
    assert await misnamed.keys() == before


async def test_a_rotation_is_not_refused_where_one_data_key_is_intact_or_a_disabled_version_wraps_all(
    in_a_file: Rotated, versions: Versions, new_version: NewVersion
) -> None:
    await in_a_file.execute("UPDATE data_keys SET wrapped = x'00' WHERE id < :id", id=data_key_id(2))
    await new_version()
    assert (await in_a_file.do(run, RotationType.NEW_DEK, new_dek_min_age="1ms")).rotation is not None
    await in_a_file.execute("DELETE FROM data_keys WHERE id NOT IN (:id)", id=data_key_id(2))
    await versions.disable(1)
    assert (await in_a_file.do(run, RotationType.NEW_DEK, new_dek_min_age="1ms")).rotation is not None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"previous_kms": [{"key": KEY}]},
            "for the same path on two servers, set `server` of the new one",
        ),
        (
            {"driver": {"kind": "table", "database": "sqlite:///a.db", "table": "a", "id": "b", "wrapped": "c"}},
            "previous_kms: the driver table has one KMS key only; expected another driver",
        ),
    ],
)
def test_settings_that_no_move_can_have_are_refused(on_google: Rotated, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        on_google.settings(**changes)
