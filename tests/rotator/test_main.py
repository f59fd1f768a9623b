"""The command itself, in a process: exit codes, what it prints, what it leaves."""

import asyncio
import base64
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from tests import processes
from tests.fork_server import forked
from tests.rotator.keyring_to_rotate import NewVersion, Rotated, secret


class Ended(NamedTuple):
    code: int | None
    out: str
    err: str


async def started(*arguments: str, largest: int | None = None, **environ: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(forked("services.rotator") if largest is None else (sys.executable, "-m", "services.rotator")),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
    )
    if largest is not None:  # long before it has imported what writes
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, largest))
    return process


async def rotator(*arguments: str, largest: int | None = None, **environ: str) -> Ended:
    process = await started(*arguments, largest=largest, **environ)
    out, err = await processes.finish(process)
    return Ended(process.returncode, out.decode(), err.decode())


async def test_plan_run_status_and_a_second_run(in_a_file: Rotated, new_version: NewVersion, tmp_path: Path) -> None:
    config = str(in_a_file.configuration())
    await new_version()
    plan = await rotator("plan", "--config", config)
    assert plan.code == 0
    assert "3 data keys (3 by version 1) to be re-wrapped by version 2" in plan.out
    assert f"keypulse-rotator run --type rewrap-kek --config {config}" in plan.out
    dry = await rotator("run", "--type", "rewrap-kek", "--dry-run", "--config", config)
    assert (dry.code, "nothing was changed" in dry.out) == (0, True)
    assert {key.wrapped.kek_version for key in (await in_a_file.keys()).values()} == {"1"}
    summary = tmp_path / "summary.md"
    summary.write_text("# before\n")
    done = await rotator("run", "--type", "rewrap-kek", "--config", config, "--json", GITHUB_STEP_SUMMARY=str(summary))
    report = json.loads(done.out)
    assert (done.code, report["outcome"]) == (0, "done")
    assert [step["step"] for step in report["steps"]] == (
        ["primary_version", "smoke", "backup", "primary_in_use", "rotate", "reload", "verify"]
    )
    assert "3 of 3 data keys" in done.err
    assert summary.read_text().startswith("# before\n## ✓ keypulse-rotator run: done\n")
    (stored_report,) = (tmp_path / "state" / "reports").iterdir()
    assert json.loads(stored_report.read_text())["rotation"]["done"] == 3
    status = json.loads((await rotator("status", "--config", config, "--json")).out)
    assert status["rotation"]["rotation_id"] == report["rotation"]["rotation_id"]
    second = await rotator("run", "--type", "rewrap-kek", "--config", config)
    assert (second.code, ": nothing to do\n\nall 3 data keys" in second.out) == (0, True)
    for result in (plan, dry, done, second):
        assert "Traceback" not in result.err


async def test_nothing_that_it_prints_or_keeps_shows_a_data_key_or_a_wrapped_one(
    in_a_file: Rotated, new_version: NewVersion, tmp_path: Path
) -> None:
    config = str(in_a_file.configuration())
    await new_version()
    wraps = [key.wrapped.ciphertext for key in (await in_a_file.keys()).values()]
    results = [
        await rotator(*arguments, "--config", config)
        for arguments in (
            ("run", "--type", "rewrap-kek"),
            ("census",),
            ("verify", "--full"),
            ("restore-check", "latest"),
        )
    ]
    assert [each.code for each in results] == [0, 0, 0, 0]
    output = b"".join((each.out + each.err).encode() for each in results)
    output += b"".join(file.read_bytes() for file in (tmp_path / "state").rglob("*") if file.is_file())
    for hidden in (*wraps, *(secret(number) for number in range(3))):
        assert hidden not in output
        assert hidden.hex().encode() not in output
        assert base64.b64encode(hidden)[:40] not in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "--config", "{config}"), "expected one of --type TYPE and --all"),
        (("run", "--type", "both", "--config", "{config}"), "'both' is not one of"),
        (("retire", "1", "--config", "{config}"), "Missing option '--confirm'"),
        (("destroy", "1", "--confirm", "2", "--config", "{config}"), "--confirm: expected the same version, 1, got 2"),
        (("plan", "--config", "{config}.not"), "No such file"),
        (("plan",), "no configuration; expected --config FILE; docs/configuration/rotator.md has one to begin with"),
    ],
)
async def test_wrong_usage_is_one_sentence_and_2(in_a_file: Rotated, arguments: tuple[str, ...], sentence: str) -> None:
    config = str(in_a_file.configuration())
    ended = await rotator(*(argument.format(config=config) for argument in arguments))
    assert ended.code == 2
    assert sentence in ended.err


async def test_the_help_says_that_transit_destroys_at_once() -> None:
    assert "Transit destroys it at once and for good" in " ".join((await rotator("destroy", "--help")).out.split())
    assert "Transit destroys at once" in " ".join((await rotator("--help")).out.split())


async def test_an_error_in_the_configuration_is_one_line_and_2(in_a_file: Rotated) -> None:
    ended = await rotator("plan", "--config", str(in_a_file.configuration(batch_size=0)), KEYPULSE_ROTATOR__LEAS="1s")
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "KEYPULSE_ROTATOR__LEAS: unknown key; did you mean lease?",
        f"{in_a_file.folder / 'rotator.yml'}: batch_size: expected at least 1, got 0",
    ]


async def test_a_failure_is_one_sentence_and_1_and_says_what_to_type(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    config = str(in_a_file.configuration())
    await new_version()
    emulator.faults.add(EmulatorFault(kind="status", status="UNAUTHENTICATED", operation="Encrypt"))
    ended = await rotator("run", "--type", "rewrap-kek", "--config", config)
    assert ended.code == 1
    assert "the smoke test failed, nothing was changed: ✗ KMS" in ended.out
    assert f"    keypulse-rotator run --type rewrap-kek --config {config}" in ended.out
    assert "Traceback" not in ended.err


async def test_a_full_disk_at_the_backup_changes_nothing_and_leaves_nothing_half(
    postgres_database: URL, emulator: Emulator, new_version: NewVersion, tmp_path: Path
) -> None:
    rotated = Rotated(postgres_database, emulator.address, tmp_path)  # in SQLite the keyring could not grow either
    await rotated.fill(3)
    config = str(rotated.configuration())
    await new_version()
    ended = await rotator("run", "--type", "rewrap-kek", "--config", config, largest=500)
    assert ended.code == 1
    assert f"the backup cannot be written to {tmp_path / 'state' / 'backups'}: File too large" in ended.out
    assert f"    keypulse-rotator run --type rewrap-kek --config {config}" in ended.out
    assert list((tmp_path / "state" / "backups").iterdir()) == []
    assert {key.wrapped.kek_version for key in (await rotated.keys()).values()} == {"1"}
    assert (await rotator("run", "--type", "rewrap-kek", "--config", config)).code == 0


async def test_a_signal_ends_it_with_a_sentence_and_the_lease_is_given_up(
    in_a_file: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    config = str(in_a_file.configuration(primary_timeout="60s"))
    emulator.faults.add(EmulatorFault(kind="slow_primary", seconds=3600))
    await new_version()
    process = await started("run", "--type", "rewrap-kek", "--config", config)
    assert process.stderr
    async with asyncio.timeout(60):
        while b"primary_in_use" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        out, _ = await processes.finish(process)
    assert process.returncode == 1
    assert "stopped by a signal" in out.decode()
    emulator.faults.clear()
    assert (await rotator("run", "--type", "new-dek", "--config", config)).code == 0
