"""The contracts name every capability, so that the core cannot come to know a new one."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CORE = {"channels", "delivery", "intake", "model", "outbox", "text"}


def contracts() -> list[dict[str, Any]]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    assert isinstance(found, list)
    return found


def test_every_capability_of_the_relay_is_one_that_the_core_may_not_know() -> None:
    (contract,) = [each for each in contracts() if each["name"] == "the relay's core knows no capability"]
    folders = {file.parent.name for file in (ROOT / "services/relay").glob("*/__init__.py")}
    assert {name.rpartition(".")[2] for name in contract["source_modules"]} == CORE
    assert {name.rpartition(".")[2] for name in contract["forbidden_modules"]} >= folders - CORE


def test_the_delivery_may_import_nothing_of_the_channels_but_their_port() -> None:
    (contract,) = [each for each in contracts() if each["name"] == "delivery knows of channels the port only"]
    assert contract["forbidden_modules"] == ["services.relay.channels"]
    assert contract["ignore_imports"] == ["services.relay.delivery.** -> services.relay.channels.port"]
