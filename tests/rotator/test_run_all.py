"""`run --all`: every type that the driver has, one after the other, whatever failed before."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from shared.kms.port import KeyDescription
from tests import memory_kms
from tests.rotator.command_line import type_command
from tests.rotator.keyring_to_rotate import Rotated, data_key_id

KEY = "vault/ledger"


class RotatedInMemory(Rotated):
    """A keyring in SQLite, under a key in memory."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kms": {"provider": "memory", "key": KEY}, "previous_kms": []}


@pytest.fixture
def keyring(tmp_path: Path) -> Iterator[RotatedInMemory]:
    """Three data keys by version `elm`, and a newer version."""
    with memory_kms.registered():
        key = memory_kms.create_key(KEY, "elm")
        url = URL.create("sqlite", database=str(tmp_path / "keyring.db"))
        keyring = RotatedInMemory(url, "", tmp_path)  # type: ignore[arg-type]  # no emulator is there
        asyncio.run(keyring.fill(3))
        key.add_version("oak")
        yield keyring


def list_versions(keyring: Rotated) -> list[str]:
    return sorted(key.wrapped.kek_version for key in asyncio.run(keyring.keys()).values())


def test_everything_is_rotated_and_a_second_run_has_nothing_to_do(keyring: RotatedInMemory) -> None:
    config = keyring.configuration()
    dry = type_command("run", "--all", "--dry-run", "--config", config)
    assert (dry.exit_code, "**new-dek**" in dry.stdout, "**rewrap-kek**" in dry.stdout) == (0, True, True)
    assert list_versions(keyring) == ["elm"] * 3
    ended = type_command("run", "--all", "--config", config)
    assert ended.exit_code == 0
    assert [line for line in ended.stdout.splitlines() if line.startswith("## ")] == [
        "## - keypulse-rotator resume: nothing to do",
        "## ✓ keypulse-rotator run: done",
        "## ✓ keypulse-rotator run: done",
    ]
    assert list_versions(keyring) == ["oak"] * 4
    second = type_command("run", "--all", "--config", config)
    assert (second.exit_code, second.stdout.count(": nothing to do\n")) == (0, 3)


def test_a_data_key_that_cannot_be_read_keeps_nothing_else_from_rotation(keyring: RotatedInMemory) -> None:
    asyncio.run(keyring.execute("UPDATE data_keys SET wrapped = :junk WHERE id = :id", junk=b"junk", id=data_key_id(0)))
    for data_keys in (4, 4):  # a second new data key within a day is not due
        ended = type_command("run", "--all", "--config", keyring.configuration())
        assert ended.exit_code == 1
        assert list_versions(keyring) == ["elm", *["oak"] * (data_keys - 1)]


def test_a_signal_ends_all_of_it(keyring: RotatedInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    async def describe(_key: memory_kms.MemoryKey, *, timeout: float) -> KeyDescription:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(timeout)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(memory_kms.MemoryKey, "describe_key", describe)
    ended = type_command("run", "--all", "--config", keyring.configuration())
    assert ended.exit_code == 1
    assert ended.stdout.count("stopped by a signal") == 1
    assert "## ✗ keypulse-rotator run: stopped" in ended.stdout


@pytest.mark.parametrize("arguments", [(), ("--all", "--type", "new-dek")])
def test_one_of_type_and_all_is_expected(keyring: RotatedInMemory, arguments: tuple[str, ...]) -> None:
    ended = type_command("run", *arguments, "--config", keyring.configuration())
    assert (ended.exit_code, "expected one of --type TYPE and --all" in ended.stderr) == (2, True)
