"""`metrics_file`: what nobody else shows of the rotations of a table, for node_exporter."""

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.rotator.command_line import type_command
from tests.rotator.table.tenants import Tenants


def read(file: Path) -> dict[tuple[str, ...], float]:
    """The value of each series, by its name and the values of its labels without `service`."""
    families = text_string_to_metric_families(file.read_text())
    samples = [sample for family in families for sample in family.samples]
    assert {sample.labels["service"] for sample in samples} == {"shop"}
    return {
        (each.name, *(value for name, value in each.labels.items() if name != "service")): each.value
        for each in samples
    }


def test_a_failure_and_then_a_success_are_in_the_file(due: Tenants, tmp_path: Path) -> None:
    file = tmp_path / "shop.prom"
    config = due.configuration(metrics_file=str(file))
    (good,) = asyncio.run(due.execute("SELECT dek_ciphertext FROM tenant_keys WHERE tenant = 'acme'"))[0]
    write = "UPDATE tenant_keys SET dek_ciphertext = :wrapped WHERE tenant = 'acme'"
    asyncio.run(due.execute(write, {"wrapped": b"junk"}))
    assert type_command("run", "--all", "--config", config).exit_code == 1
    failed = read(file)
    assert failed["kms_rotation_failures_total", "smoke"] == 1
    assert failed["kms_data_keys", "elm", "active"] == 2
    assert ("kms_rotation_last_success_timestamp_seconds", "rewrap-kek") not in failed
    failed_at = failed["kms_rotation_last_failure_timestamp_seconds", "rewrap-kek"]
    assert file.stat().st_mode & 0o777 == 0o644
    asyncio.run(due.execute(write, {"wrapped": good}))
    assert type_command("run", "--all", "--config", config).exit_code == 0
    done = read(file)
    assert done["kms_rotation_last_success_timestamp_seconds", "rewrap-kek"] > failed_at
    assert done["kms_rotation_in_progress",] == 0
    assert done["kms_data_keys", "oak", "active"] == 2
    assert [each.name for each in tmp_path.glob("shop*")] == ["shop.prom"]


def test_a_file_that_cannot_be_written_changes_no_exit_code(due: Tenants, tmp_path: Path) -> None:
    file = tmp_path / "none" / "shop.prom"
    ended = type_command("run", "--all", "--config", due.configuration(metrics_file=str(file)))
    assert ended.exit_code == 0
    assert f"{file}: the metrics cannot be written: No such file or directory" in ended.stderr


def test_a_name_that_names_no_service_is_refused(due: Tenants) -> None:
    ended = type_command("plan", "--config", due.configuration(metrics_file="shop.txt"))
    assert (ended.exit_code, "metrics_file: expected SERVICE.prom, got shop.txt" in ended.stderr) == (2, True)
